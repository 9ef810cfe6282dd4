// The peer stream of a genrpc node: the handshake, then any number of calls at once.
//
// Written from the comments of genrpc.proto. Calls that are made in one turn of the event loop
// leave in one frame; large payloads leave in chunks, as the node's byte credit allows.

import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { decode, encode } from './genrpc.js';

const REVISION = 1;
const WINDOW = 2 * 2 ** 20; // bytes of chunks that the node may send before it is granted more
const MAX_FRAME = 4 * 2 ** 20; // what grpc-js takes, unless told otherwise
const MAX_MESSAGE = 64 * 2 ** 20;
const INLINE = 64 * 1024;
const CHUNK = 256 * 1024;
const FULL = 512 * 1024; // bytes of small payloads that are enough for a frame

const TERMS = 'PAYLOAD_ENCODING_TERMS';
const JSON_ = 'PAYLOAD_ENCODING_JSON';

/** A call that failed on the node; `error` is its RpcError. */
export class CallError extends Error {
  constructor(error) {
    super(error.message);
    this.error = error;
  }
}

/** The node has ended the stream, or refused the handshake; `reason` is its ErrorReason. */
export class GoneError extends Error {
  constructor(message, reason = 'ERROR_REASON_UNSPECIFIED') {
    super(message);
    this.reason = reason;
  }
}

// ---------------------------------------------------------------- the handshake

function u32(number) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(number);
  return bytes;
}

function transcript(hello, challenge) {
  const hash = createHash('sha256');
  const fields = [
    'genrpc/1',
    u32(hello.revision_min),
    u32(hello.revision_max),
    hello.node,
    hello.target_node,
    hello.nonce,
    hello.shard_key,
    Buffer.from([hello.want_pickle ? 1 : 0]),
    hello.content_types.join(','),
    u32(challenge.revision),
    challenge.node,
    challenge.nonce,
    challenge.instance_id,
  ];
  for (const field of fields.map((field) => Buffer.from(field))) {
    hash.update(u32(field.length)).update(field);
  }
  return hash.digest();
}

function hmac(key, ...parts) {
  const mac = createHmac('sha256', key);
  parts.forEach((part) => mac.update(part));
  return mac.digest();
}

// ---------------------------------------------------------------- the stream

/** A stream to one node; `Stream.open` makes one. */
export class Stream {
  #duplex;
  #ended = null; // why there will be no further answer
  #frames = []; // frames of the handshake that wait for their reader
  #reader = null;
  #ready = false;
  #credit = 0; // bytes of chunks that may still be sent
  #toGrant = 0; // bytes of chunks that came and were not granted back
  #targets = new Map(); // "module:function" → its number on this stream
  #newTargets = [];
  #lastId = 0;
  #waiting = []; // small calls for the next frame
  #transfers = []; // large calls, of which the first is on its way
  #cancels = [];
  #calls = new Map(); // id → { resolve, reject }
  #arriving = new Map(); // id → { start, pieces }
  #flushing = false;
  framesSent = 0;

  /** Open a stream from `node` (a name of your own) to `target`; both prove the cookie. */
  static async open(client, { node, target, cookie }) {
    const stream = new Stream(client);
    try {
      await stream.#shakeHands(node, target, cookie);
    } catch (error) {
      stream.#duplex.cancel();
      throw error;
    }
    return stream;
  }

  constructor(client) {
    this.#duplex = client.Connect();
    this.#duplex.on('data', (frame) => this.#receive(frame));
    this.#duplex.on('error', (error) => this.#end(new GoneError(error.message)));
    this.#duplex.on('end', () => this.#end(new GoneError('The node has ended the stream.')));
  }

  /**
   * Call a function with JSON arguments; gives its result.
   * `seconds` is the time it has, `signal` an AbortSignal that gives it up.
   */
  async call(module, func, args = [], { kwargs = {}, seconds = 0, signal } = {}) {
    const payload = Buffer.from(JSON.stringify([args, kwargs]));
    const reply = await this.#submit(module, func, payload, JSON_, seconds, signal);
    return JSON.parse(reply.toString());
  }

  /** Call a function with a list of Terms; gives a Term. */
  async callTerms(module, func, args, { kwargs = {}, seconds = 0, signal } = {}) {
    const payload = encode('genrpc.v1.Terms', { args, kwargs });
    const reply = await this.#submit(module, func, payload, TERMS, seconds, signal);
    return decode('genrpc.v1.Term', reply);
  }

  /** Close this side: what was called is still answered. */
  close() {
    this.#flush();
    this.#duplex.end();
  }

  async #shakeHands(node, target, cookie) {
    const hello = {
      revision_min: REVISION,
      revision_max: REVISION,
      node,
      target_node: target,
      nonce: randomBytes(32),
      content_types: ['application/json'],
      shard_key: '',
      want_pickle: false,
    };
    this.#duplex.write({ hello });
    const { challenge } = await this.#nextFrame('challenge');
    if (challenge.nonce.length !== 32 || challenge.nonce.equals(hello.nonce)) {
      throw new GoneError("The node's nonce is not right.");
    }
    if (challenge.node !== target) throw new GoneError(`This is ${challenge.node}.`);
    const key = hmac(cookie, 'genrpc/1 cookie key');
    const th = transcript(hello, challenge);
    const limits = {
      window_bytes: WINDOW,
      max_frame_bytes: MAX_FRAME,
      max_message_bytes: MAX_MESSAGE,
    };
    this.#duplex.write({ auth_proof: { mac: hmac(key, 'client', th), ...limits } });
    const { welcome } = await this.#nextFrame('welcome');
    const expected = hmac(key, 'server', th);
    if (welcome.mac.length !== 32 || !timingSafeEqual(welcome.mac, expected)) {
      throw new GoneError('The node does not know the cookie.', 'ERROR_REASON_INVALID_COOKIE');
    }
    this.#credit = Number(welcome.window_bytes);
    this.#ready = true;
  }

  async #nextFrame(kind) {
    const frame =
      this.#frames.shift() ??
      (await new Promise((resolve, reject) => {
        if (this.#ended) reject(this.#ended);
        this.#reader = { resolve, reject };
      }));
    if (frame[kind]) return frame;
    const { message, reason } = frame.go_away ?? { message: `No ${kind} came.` };
    throw new GoneError(message, reason);
  }

  // -------------------------------------------------------------- sending

  #submit(module, func, payload, encoding, seconds, signal) {
    if (this.#ended) return Promise.reject(this.#ended);
    signal?.throwIfAborted();
    const id = ++this.#lastId;
    const call = { id, target: this.#numberOf(module, func), payload, encoding, seconds, sent: 0 };
    (payload.length > INLINE ? this.#transfers : this.#waiting).push(call);
    this.#flushSoon();
    return new Promise((resolve, reject) => {
      // The node runs nothing that begins too late, but does not interrupt a function either.
      const timer = seconds && setTimeout(() => this.#cancel(id, timedOut()), seconds * 1000);
      const abort = () => this.#cancel(id, signal.reason);
      signal?.addEventListener('abort', abort);
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
      };
      this.#calls.set(id, { resolve, reject, done });
    });
  }

  #numberOf(module, func) {
    const name = `${module}:${func}`;
    let number = this.#targets.get(name);
    if (number === undefined) {
      number = this.#targets.size;
      if (number > 4095) throw new Error('This stream has called 4096 functions: open another.');
      this.#targets.set(name, number);
      this.#newTargets.push({ number, module, function: func });
    }
    return number;
  }

  #cancel(id, reason) {
    const call = this.#take(id);
    if (!call) return;
    this.#waiting = this.#waiting.filter((other) => other.id !== id);
    const index = this.#transfers.findIndex((other) => other.id === id);
    const [transfer] = index < 0 ? [] : this.#transfers.splice(index, 1);
    if (transfer?.sent) this.#duplex.write({ calls: { chunk: { call_id: id, abandoned: true } } });
    this.#cancels.push(id);
    this.#flushSoon();
    call.reject(reason);
  }

  #flushSoon() {
    if (this.#flushing) return;
    this.#flushing = true;
    setImmediate(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  #flush() {
    for (let batch = this.#nextBatch(); batch; batch = this.#nextBatch()) {
      this.framesSent += 1;
      this.#duplex.write({ calls: batch });
    }
  }

  #nextBatch() {
    const batch = {};
    const chunk = this.#nextChunk();
    if (chunk) batch.chunk = chunk;
    const small = this.#nextCalls();
    if (small.length) {
      batch.call_ids = small.map((call) => call.id);
      batch.call_targets = small.map((call) => call.target);
      batch.timeouts_us = small.map(microseconds);
      batch.payloads = small.map((call) => call.payload);
      batch.encodings = small.map((call) => call.encoding);
    }
    if (this.#cancels.length) batch.cancels = this.#cancels.splice(0);
    if (this.#toGrant) {
      batch.credit = this.#toGrant;
      this.#toGrant = 0;
    }
    if (!Object.keys(batch).length) return null;
    if (this.#newTargets.length) batch.targets = this.#newTargets.splice(0);
    return batch;
  }

  #nextCalls() {
    let bytes = 0;
    let count = 0;
    while (count < this.#waiting.length && bytes < FULL)
      bytes += this.#waiting[count++].payload.length;
    return this.#waiting.splice(0, count);
  }

  #nextChunk() {
    if (!this.#transfers.length || !this.#credit) return null;
    // One after the other: they might take turns, but then max_transfer_bytes is to be kept.
    const [call] = this.#transfers;
    const chunk = { call_id: call.id };
    if (!call.sent) {
      chunk.start = {
        part_sizes: [call.payload.length],
        encoding: call.encoding,
        target: call.target,
        timeout_us: microseconds(call),
      };
    }
    chunk.data = call.payload.subarray(call.sent, call.sent + Math.min(CHUNK, this.#credit));
    call.sent += chunk.data.length;
    this.#credit -= chunk.data.length;
    chunk.last = call.sent === call.payload.length;
    if (chunk.last) this.#transfers.shift();
    return chunk;
  }

  // -------------------------------------------------------------- receiving

  #receive(frame) {
    if (!this.#ready || frame.challenge || frame.welcome) this.#receiveEarly(frame);
    else if (frame.replies) this.#receiveReplies(frame.replies);
    else if (frame.go_away) this.#leave(frame.go_away.message);
  }

  #receiveEarly(frame) {
    if (this.#reader) this.#reader.resolve(frame);
    else this.#frames.push(frame);
    this.#reader = null;
  }

  #receiveReplies({ chunk, call_ids = [], payloads = [], outcomes = [], credit }) {
    // An array that would hold nothing but defaults is left out.
    call_ids.forEach((id, i) => this.#settle(id, outcomes[i], payloads[i]));
    if (chunk) this.#receiveChunk(chunk);
    if (credit) {
      this.#credit += Number(credit);
      this.#flushSoon();
    }
  }

  #receiveChunk({ call_id, start, data, last, abandoned }) {
    if (start) this.#arriving.set(call_id, { start, pieces: [] });
    const transfer = this.#arriving.get(call_id);
    if (data) {
      this.#toGrant += data.length;
      if (this.#toGrant * 2 >= WINDOW) this.#flushSoon();
      transfer.pieces.push(data);
    }
    if (!last && !abandoned) return;
    this.#arriving.delete(call_id);
    if (last) this.#settle(call_id, transfer.start.outcome, Buffer.concat(transfer.pieces));
  }

  #settle(id, outcome, payload) {
    const call = this.#take(Number(id));
    if (!call) return; // it was cancelled
    if (outcome === 'OUTCOME_KIND_ERROR') {
      call.reject(new CallError(decode('genrpc.v1.RpcError', payload)));
    } else {
      call.resolve(payload);
    }
    if (this.#ended && !this.#calls.size) this.close();
  }

  #take(id) {
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    call?.done();
    return call;
  }

  #leave(message) {
    this.#ended ??= new GoneError(message); // for calls to come; those that were made are served
    if (!this.#calls.size) this.close();
  }

  #end(error) {
    this.#ended ??= error;
    this.#reader?.reject(this.#ended);
    for (const id of [...this.#calls.keys()]) this.#take(id).reject(error);
  }
}

function timedOut() {
  const message = 'No answer came in time.';
  const execution = 'EXECUTION_UNSPECIFIED';
  return new CallError({ reason: 'ERROR_REASON_TIMEOUT', message, execution });
}

function microseconds(call) {
  return Math.ceil(call.seconds * 1e6);
}
