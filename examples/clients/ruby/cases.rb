# Calls Python functions on a genrpc node, and prints a line of JSON for each case; see ../README.md.
#
# `run` generates genrpc/v1/genrpc_pb.rb and genrpc_services_pb.rb from the proto, and starts this.

require 'digest'
require 'json'
require 'genrpc/v1/genrpc_services_pb'
require 'google/protobuf/well_known_types'
require 'google/rpc/error_details_pb'

V1 = Genrpc::V1
Pb = Google::Protobuf

ADDRESS = ENV.fetch('GENRPC_ADDRESS', '127.0.0.1:5369')
TOKEN = ENV.fetch('GENRPC_TOKEN')
SECONDS = 20

# A token in the clear is for loopback only; nodes elsewhere want TLS.
NODE = V1::NodeService::Stub.new(ADDRESS, :this_channel_is_insecure)

# Calls a function; gives what is to be printed: the response or the status.
def call(mfa, token: TOKEN, seconds: SECONDS)
  { response: json(ask(mfa, token: token, seconds: seconds)) }
rescue GRPC::BadStatus => error
  { status: status(error) }
end

def ask(mfa, token: TOKEN, seconds: SECONDS)
  metadata = token ? { 'authorization' => "Bearer #{token}" } : {}
  request = V1::CallRequest.new(mfa: V1::Mfa.new(**mfa))
  NODE.call(request, metadata: metadata, deadline: Time.now + seconds)
end

def json(response)
  JSON.parse(V1::CallResponse.encode_json(response)).except('elapsed')
end

# What a failed call says: its status, and the ErrorInfo within.
def status(error)
  name = GRPC::Core::StatusCodes.constants.find do |constant|
    GRPC::Core::StatusCodes.const_get(constant) == error.code
  end
  return { code: name } if name == :DEADLINE_EXCEEDED # the message is gRPC's own

  found = { code: name, message: error.details }
  error.to_rpc_status&.details&.each do |detail|
    next unless detail.is(Google::Rpc::ErrorInfo)

    info = detail.unpack(Google::Rpc::ErrorInfo)
    found.update(reason: info.reason, domain: info.domain, execution: info.metadata['execution'])
  end
  found
end

# Makes a google.protobuf.ListValue of an array.
def list(items)
  Pb::ListValue.decode_json(JSON.generate(items))
end

def terms(**kinds)
  { terms: V1::Terms.new(args: kinds.map { |kind, value| V1::Term.new(kind => value) }) }
end

def items(*terms)
  V1::TermList.new(items: terms)
end

# One of every kind of Term; a Term with nothing set is None.
TUPLE = items(
  V1::Term.new,
  V1::Term.new(bool_value: true),
  V1::Term.new(int_value: 2**53 + 1),
  V1::Term.new(big_int_value: (2**70).to_s),
  V1::Term.new(float_value: 0.5),
  V1::Term.new(string_value: 'é'),
  V1::Term.new(bytes_value: "\x00\x01\xff".b),
  V1::Term.new(atom_value: 'ok'),
  V1::Term.new(
    map_value: V1::TermMap.new(
      entries: [
        V1::TermEntry.new(key: V1::Term.new(int_value: 1), value: V1::Term.new(list_value: items))
      ]
    )
  ),
  V1::Term.new(set_value: items(V1::Term.new(string_value: 'a')))
)

FACTORIAL = { module: 'math', function: 'factorial', args: list([5]) }.freeze
ECHO = { module: 'copy', function: 'deepcopy' }.freeze
LARGE = Array.new(2**20) { |i| (i * 31) % 251 }.pack('C*') # a megabyte that is not all the same

CASES = {
  empty_unary: lambda do
    metadata = { 'authorization' => "Bearer #{TOKEN}" }
    { response: { node: NODE.get_status(V1::GetStatusRequest.new, metadata: metadata).node } }
  end,
  unary_args: -> { call(FACTORIAL) },
  unary_kwargs: lambda do
    reverse = Pb::Struct.decode_json('{"reverse": true}')
    call({ module: 'builtins', function: 'sorted', args: list([[3, 1, 2]]), kwargs: reverse })
  end,
  unary_terms: -> { call({ **ECHO, **terms(tuple_value: TUPLE) }) },
  exception: -> { call({ module: 'operator', function: 'truediv', args: list([1, 0]) }) },
  undefined_function: -> { call({ module: 'math', function: 'no_such_function' }) },
  status_code_and_message: -> { call({ module: 'os', function: 'getpid' }) },
  custom_metadata: -> { call(FACTORIAL).merge(call(FACTORIAL, token: nil)) },
  timeout_on_sleeping_server: lambda do
    call({ module: 'time', function: 'sleep', args: list([30]) }, seconds: 0.3)
  end,
  large_unary: lambda do
    bytes = ask({ **ECHO, **terms(bytes_value: LARGE) }).result.term.bytes_value
    { bytes: bytes.bytesize, sha256: Digest::SHA256.hexdigest(bytes) }
  end
}.freeze

CASES.each { |name, run| puts JSON.generate({ case: name, **run.call }) }
