// Calls Python functions on a genrpc node, and prints a line of JSON for each case; see ../README.md.
//
// `run` generates io.genrpc.v1 from the proto, compiles, and starts this.

import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.ListValue;
import com.google.protobuf.Message;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.ErrorInfo;
import io.genrpc.v1.CallRequest;
import io.genrpc.v1.CallResponse;
import io.genrpc.v1.GetStatusRequest;
import io.genrpc.v1.Mfa;
import io.genrpc.v1.NodeServiceGrpc;
import io.genrpc.v1.NodeServiceGrpc.NodeServiceBlockingStub;
import io.genrpc.v1.Term;
import io.genrpc.v1.TermEntry;
import io.genrpc.v1.TermList;
import io.genrpc.v1.TermMap;
import io.genrpc.v1.Terms;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.MetadataUtils;
import java.math.BigInteger;
import java.security.MessageDigest;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;

/** The cases that every client here has. */
final class Cases {
  private static final String TOKEN = System.getenv("GENRPC_TOKEN");
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  private final NodeServiceBlockingStub node;

  private Cases(ManagedChannel channel) {
    node = NodeServiceGrpc.newBlockingStub(channel);
  }

  public static void main(String[] args) throws Exception {
    String address = System.getenv().getOrDefault("GENRPC_ADDRESS", "127.0.0.1:5369");
    // A token in the clear is for loopback only; nodes elsewhere want TLS.
    ManagedChannel channel = NettyChannelBuilder.forTarget(address).usePlaintext().build();
    try {
      for (Map.Entry<String, Callable<JsonObject>> each : new Cases(channel).all().entrySet()) {
        JsonObject line = new JsonObject();
        line.addProperty("case", each.getKey());
        each.getValue().call().entrySet().forEach(e -> line.add(e.getKey(), e.getValue()));
        System.out.println(line);
      }
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private Map<String, Callable<JsonObject>> all() throws InvalidProtocolBufferException {
    Mfa factorial = mfa("math", "factorial").setArgs(list("[5]")).build();
    Mfa sorted =
        mfa("builtins", "sorted")
            .setArgs(list("[[3, 1, 2]]"))
            .setKwargs(Struct.newBuilder().putFields("reverse", value(true)))
            .build();
    Mfa sleep = mfa("time", "sleep").setArgs(list("[30]")).build();

    Map<String, Callable<JsonObject>> cases = new LinkedHashMap<>();
    cases.put("empty_unary", this::emptyUnary);
    cases.put("unary_args", () -> call(factorial, TOKEN));
    cases.put("unary_kwargs", () -> call(sorted, TOKEN));
    cases.put("unary_terms", () -> call(echo(tuple()), TOKEN));
    cases.put(
        "exception",
        () -> call(mfa("operator", "truediv").setArgs(list("[1, 0]")).build(), TOKEN));
    cases.put("undefined_function", () -> call(mfa("math", "no_such_function").build(), TOKEN));
    cases.put("status_code_and_message", () -> call(mfa("os", "getpid").build(), TOKEN));
    cases.put("custom_metadata", () -> merged(call(factorial, TOKEN), call(factorial, null)));
    cases.put("timeout_on_sleeping_server", () -> call(sleep, TOKEN, 300));
    cases.put("large_unary", this::largeUnary);
    return cases;
  }

  private JsonObject emptyUnary() {
    JsonObject response = new JsonObject();
    response.addProperty(
        "node", with(TOKEN, 20_000).getStatus(GetStatusRequest.getDefaultInstance()).getNode());
    return object("response", response);
  }

  private JsonObject largeUnary() throws Exception {
    byte[] large = new byte[1 << 20]; // a megabyte that is not all the same
    for (int i = 0; i < large.length; i++) {
      large[i] = (byte) (i * 31L % 251);
    }
    Term term = Term.newBuilder().setBytesValue(ByteString.copyFrom(large)).build();
    CallResponse response = with(TOKEN, 20_000).call(request(echo(term)));
    byte[] bytes = response.getResult().getTerm().getBytesValue().toByteArray();
    byte[] digest = MessageDigest.getInstance("SHA-256").digest(bytes);
    JsonObject told = new JsonObject();
    told.addProperty("bytes", bytes.length);
    told.addProperty("sha256", String.format("%064x", new BigInteger(1, digest)));
    return told;
  }

  // ---------------------------------------------------------------- calls

  private JsonObject call(Mfa mfa, String token) throws InvalidProtocolBufferException {
    return call(mfa, token, 20_000);
  }

  /** Calls a function; gives what is to be printed: the response or the status. */
  private JsonObject call(Mfa mfa, String token, long milliseconds)
      throws InvalidProtocolBufferException {
    try {
      JsonObject response = json(with(token, milliseconds).call(request(mfa)));
      response.remove("elapsed");
      return object("response", response);
    } catch (StatusRuntimeException e) {
      return object("status", status(e));
    }
  }

  private NodeServiceBlockingStub with(String token, long milliseconds) {
    NodeServiceBlockingStub stub = node.withDeadlineAfter(milliseconds, TimeUnit.MILLISECONDS);
    if (token == null) {
      return stub;
    }
    Metadata metadata = new Metadata();
    metadata.put(
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    return stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));
  }

  /** What a failed call says: its status, and the ErrorInfo within. */
  private static JsonObject status(StatusRuntimeException e)
      throws InvalidProtocolBufferException {
    JsonObject told = new JsonObject();
    told.addProperty("code", e.getStatus().getCode().name());
    if (e.getStatus().getCode() == Status.Code.DEADLINE_EXCEEDED) {
      return told; // the message is gRPC's own
    }
    told.addProperty("message", e.getStatus().getDescription());
    byte[] details = e.getTrailers() == null ? null : e.getTrailers().get(DETAILS);
    if (details != null) {
      for (com.google.protobuf.Any each :
          com.google.rpc.Status.parseFrom(details).getDetailsList()) {
        if (each.is(ErrorInfo.class)) {
          ErrorInfo info = each.unpack(ErrorInfo.class);
          told.addProperty("reason", info.getReason());
          told.addProperty("domain", info.getDomain());
          told.addProperty("execution", info.getMetadataOrThrow("execution"));
        }
      }
    }
    return told;
  }

  // ---------------------------------------------------------------- messages

  private static Mfa.Builder mfa(String module, String function) {
    return Mfa.newBuilder().setModule(module).setFunction(function);
  }

  private static Mfa echo(Term term) {
    return mfa("copy", "deepcopy").setTerms(Terms.newBuilder().addArgs(term)).build();
  }

  private static CallRequest request(Mfa mfa) {
    return CallRequest.newBuilder().setMfa(mfa).build();
  }

  private static ListValue list(String json) throws InvalidProtocolBufferException {
    ListValue.Builder list = ListValue.newBuilder();
    JsonFormat.parser().merge(json, list);
    return list.build();
  }

  private static Value value(boolean flag) {
    return Value.newBuilder().setBoolValue(flag).build();
  }

  /** One of every kind of Term; a Term with nothing set is None. */
  private static Term tuple() {
    ByteString bytes = ByteString.copyFrom(new byte[] {0, 1, (byte) 255});
    TermEntry entry =
        TermEntry.newBuilder()
            .setKey(Term.newBuilder().setIntValue(1))
            .setValue(Term.newBuilder().setListValue(TermList.getDefaultInstance()))
            .build();
    TermList.Builder items =
        TermList.newBuilder()
            .addItems(Term.getDefaultInstance())
            .addItems(Term.newBuilder().setBoolValue(true))
            .addItems(Term.newBuilder().setIntValue((1L << 53) + 1))
            .addItems(Term.newBuilder().setBigIntValue(BigInteger.TWO.pow(70).toString()))
            .addItems(Term.newBuilder().setFloatValue(0.5))
            .addItems(Term.newBuilder().setStringValue("é"))
            .addItems(Term.newBuilder().setBytesValue(bytes))
            .addItems(Term.newBuilder().setAtomValue("ok"))
            .addItems(Term.newBuilder().setMapValue(TermMap.newBuilder().addEntries(entry)))
            .addItems(
                Term.newBuilder()
                    .setSetValue(
                        TermList.newBuilder().addItems(Term.newBuilder().setStringValue("a"))));
    return Term.newBuilder().setTupleValue(items).build();
  }

  private static JsonObject json(Message message) throws InvalidProtocolBufferException {
    JsonFormat.Printer printer = JsonFormat.printer();
    return JsonParser.parseString(printer.print(message)).getAsJsonObject();
  }

  private static JsonObject object(String name, JsonObject member) {
    JsonObject made = new JsonObject();
    made.add(name, member);
    return made;
  }

  private static JsonObject merged(JsonObject first, JsonObject second) {
    second.entrySet().forEach(e -> first.add(e.getKey(), e.getValue()));
    return first;
  }
}
