// Runs all cases against a node and prints a line of JSON for each; see ../README.md.

import { connect, toJson } from './genrpc.js';
import { GoneError, Stream } from './stream.js';
import { LARGE, summary, unaryCases } from './unary.js';

const {
  GENRPC_ADDRESS: address = '127.0.0.1:5369',
  GENRPC_NODE: target = 'b@127.0.0.1',
  GENRPC_TOKEN: token,
  GENRPC_COOKIE: cookie,
} = process.env;

function streamCases(client) {
  const open = (changes) =>
    Stream.open(client, { node: 'js@127.0.0.1', target, cookie, ...changes });
  const withStream = (body) => async () => {
    const stream = await open();
    try {
      return await body(stream);
    } finally {
      stream.close();
    }
  };
  return {
    async wrong_cookie() {
      try {
        (await open({ cookie: `${cookie}x` })).close();
      } catch (error) {
        return { reason: error instanceof GoneError ? error.reason : String(error) };
      }
      return { reason: 'none' };
    },
    ping_pong: withStream(async (stream) => {
      const results = [];
      for (const n of [1, 2, 3, 4]) results.push(await stream.call('math', 'factorial', [n]));
      return { results };
    }),
    stream_terms: withStream(async (stream) => {
      const term = {
        tuple_value: { items: [{ int_value: '-1' }, { bytes_value: Buffer.from([0, 255]) }] },
      };
      return { term: toJson(await stream.callTerms('copy', 'deepcopy', [term])) };
    }),
    pipelined_calls: withStream(async (stream) => {
      const numbers = Array.from({ length: 1000 }, (_, n) => n);
      const calls = numbers.map((n) => stream.call('operator', 'add', [n, 1]));
      const results = await Promise.all(calls);
      return {
        calls: calls.length,
        right: results.filter((sum, n) => sum === n + 1).length,
        frames: stream.framesSent,
      };
    }),
    large_transfer: withStream(async (stream) => {
      // Five at once are more than the byte credit of either side.
      const once = () => stream.callTerms('copy', 'deepcopy', [{ bytes_value: LARGE }]);
      const terms = await Promise.all(Array.from({ length: 5 }, once));
      return { results: terms.map((term) => summary(term.bytes_value)) };
    }),
    stream_exception: withStream((stream) =>
      stream.call('operator', 'truediv', [1, 0]).catch(({ error }) => ({ error: toJson(error) })),
    ),
    stream_refused: withStream((stream) =>
      stream.call('os', 'getpid').catch(({ error }) => ({ error: toJson(error) })),
    ),
    stream_timeout: withStream((stream) =>
      stream
        .call('time', 'sleep', [30], { seconds: 0.3 })
        .catch(({ error }) => ({ reason: error.reason })),
    ),
    cancel_after_begin: withStream(async (stream) => {
      const controller = new AbortController();
      const sleeping = stream.call('time', 'sleep', [30], { signal: controller.signal });
      const answer = stream.call('math', 'factorial', [5]); // in the same frame, so both began
      const result = await answer;
      controller.abort();
      const { name } = await sleeping.catch((error) => error);
      return { cancelled: name, result, after: await stream.call('math', 'factorial', [3]) };
    }),
  };
}

const client = connect(address);
const cases = { ...unaryCases(client, token), ...(cookie ? streamCases(client) : {}) };
for (const [name, run] of Object.entries(cases)) {
  console.log(JSON.stringify({ case: name, ...(await run()) }));
}
client.close();
