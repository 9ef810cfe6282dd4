// The unary methods of a genrpc node: a client for them, and what their answers are as JSON.

import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const PROTOS = fileURLToPath(new URL('../../../protos/', import.meta.url));
const FILE = 'genrpc/v1/genrpc.proto';

// Names as in the proto (but for google.protobuf.Value, which protobufjs brings along); 64-bit integers
// as text, since a Number holds 53 bits. Fields that are not set do not exist.
const OPTIONS = { keepCase: true, longs: String, enums: String, includeDirs: [PROTOS] };

const definition = protoLoader.loadSync(FILE, OPTIONS);
export const { NodeService } = grpc.loadPackageDefinition(definition).genrpc.v1;

// What grpc-js does not do for us: messages within `bytes`, of the stream and of statuses.
const root = new protobuf.Root();
root.resolvePath = (_, target) => (target.startsWith('google/') ? target : PROTOS + target);
root.loadSync(FILE, { keepCase: true });
protobuf.parse(
  `syntax = "proto3"; package google.rpc;
   message Any { string type_url = 1; bytes value = 2; }
   message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
   message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }`,
  root,
  { keepCase: true },
);
root.resolveAll();

/** Encode a message of the proto, say "genrpc.v1.Terms". */
export function encode(type, message) {
  const found = root.lookupType(type);
  return Buffer.from(found.encode(found.fromObject(message)).finish());
}

/** Decode a message of the proto. */
export function decode(type, bytes) {
  const found = root.lookupType(type);
  return found.toObject(found.decode(bytes), { longs: String, enums: String });
}

/** Connect to the unary methods at `address`; a token in the clear is for loopback only. */
export function connect(address) {
  return new NodeService(address, grpc.credentials.createInsecure());
}

/** Call a unary method; the promise fails with gRPC's status. */
export function ask(client, method, request, { token, seconds = 20 } = {}) {
  const metadata = new grpc.Metadata();
  if (token) metadata.set('authorization', `Bearer ${token}`);
  const deadline = Date.now() + seconds * 1000;
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

/** Make a google.protobuf.Value of JSON. */
export function toValue(json) {
  if (json === null) return { nullValue: 'NULL_VALUE' };
  if (typeof json === 'boolean') return { boolValue: json };
  if (typeof json === 'number') return { numberValue: json };
  if (typeof json === 'string') return { stringValue: json };
  if (Array.isArray(json)) return { listValue: toList(json) };
  return { structValue: toStruct(json) };
}

/** Make a google.protobuf.ListValue of an array. */
export function toList(items) {
  return { values: items.map(toValue) };
}

/** Make a google.protobuf.Struct of an object. */
export function toStruct(object) {
  const entries = Object.entries(object).map(([name, item]) => [name, toValue(item)]);
  return { fields: Object.fromEntries(entries) };
}

/** Make JSON of a google.protobuf.Value. */
export function fromValue({ listValue, structValue, boolValue, numberValue, stringValue }) {
  if (listValue) return (listValue.values ?? []).map(fromValue);
  if (structValue) {
    const entries = Object.entries(structValue.fields ?? {});
    return Object.fromEntries(entries.map(([name, item]) => [name, fromValue(item)]));
  }
  return boolValue ?? numberValue ?? stringValue ?? null;
}

/** The JSON that protobuf defines for a message without Values: bytes in base64. */
export function toJson(message) {
  if (Buffer.isBuffer(message)) return message.toString('base64');
  if (Array.isArray(message)) return message.map(toJson);
  if (message === null || typeof message !== 'object') return message;
  const entries = Object.entries(message).map(([name, field]) => [name, toJson(field)]);
  return Object.fromEntries(entries);
}

/** The same for the response of Call, whose result may be a Value. */
export function callJson({ result, error, node }) {
  if (!result?.value) return toJson({ result, error, node });
  return { result: { value: fromValue(result.value) }, node };
}

/** What a failed unary call says: its status, and the ErrorInfo within. */
export function toStatus(error) {
  const status = { code: grpc.status[error.code] };
  if (error.code === grpc.status.DEADLINE_EXCEEDED) return status; // the message is gRPC's own
  status.message = error.details;
  const [packed] = error.metadata.get('grpc-status-details-bin');
  for (const detail of packed ? decode('google.rpc.Status', packed).details : []) {
    if (!detail.type_url.endsWith('/google.rpc.ErrorInfo')) continue;
    const { reason, domain, metadata } = decode('google.rpc.ErrorInfo', detail.value);
    Object.assign(status, { reason, domain, execution: metadata.execution });
  }
  return status;
}
