// The cases that every client here has; see ../README.md.

import { createHash } from 'node:crypto';
import { ask, callJson, toList, toStatus, toStruct } from './genrpc.js';

/** One of every kind of Term; a Term with nothing set is None. */
const TUPLE = {
  tuple_value: {
    items: [
      {},
      { bool_value: true },
      { int_value: '9007199254740993' }, // 2^53 + 1, which a Number cannot hold
      { big_int_value: String(2n ** 70n) },
      { float_value: 0.5 },
      { string_value: 'é' },
      { bytes_value: Buffer.from([0, 1, 255]) },
      { atom_value: 'ok' },
      {
        map_value: { entries: [{ key: { int_value: '1' }, value: { list_value: { items: [] } } }] },
      },
      { set_value: { items: [{ string_value: 'a' }] } },
    ],
  },
};

/** A megabyte that is not all the same. */
export const LARGE = Buffer.from(Uint8Array.from({ length: 2 ** 20 }, (_, i) => (i * 31) % 251));

/** What is told of large bytes. */
export function summary(bytes) {
  return { bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
}

/** The cases by name: each gives what is to be printed beside its name. */
export function unaryCases(client, token) {
  const call = async (mfa, options = { token }) => {
    try {
      return { response: callJson(await ask(client, 'Call', { mfa }, options)) };
    } catch (error) {
      return { status: toStatus(error) };
    }
  };
  const factorial = { module: 'math', function: 'factorial', args: toList([5]) };
  return {
    async empty_unary() {
      const { node } = await ask(client, 'GetStatus', {}, { token });
      return { response: { node } };
    },
    unary_args: () => call(factorial),
    unary_kwargs: () =>
      call({
        module: 'builtins',
        function: 'sorted',
        args: toList([[3, 1, 2]]),
        kwargs: toStruct({ reverse: true }),
      }),
    unary_terms: () => call({ module: 'copy', function: 'deepcopy', terms: { args: [TUPLE] } }),
    exception: () => call({ module: 'operator', function: 'truediv', args: toList([1, 0]) }),
    undefined_function: () => call({ module: 'math', function: 'no_such_function' }),
    status_code_and_message: () => call({ module: 'os', function: 'getpid' }),
    async custom_metadata() {
      return { ...(await call(factorial)), ...(await call(factorial, { token: undefined })) };
    },
    timeout_on_sleeping_server: () =>
      call({ module: 'time', function: 'sleep', args: toList([30]) }, { token, seconds: 0.3 }),
    async large_unary() {
      const terms = { args: [{ bytes_value: LARGE }] };
      const request = { mfa: { module: 'copy', function: 'deepcopy', terms } };
      const { result } = await ask(client, 'Call', request, { token });
      return summary(result.term.bytes_value);
    },
  };
}
