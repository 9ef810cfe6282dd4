#!/usr/bin/env escript
%% OTP's erpc, measured as benchmarks/scenarios.py measures the rest: the same windows, the same
%% checks, with Erlang processes where Python has threads or tasks.
%%
%%   erpc.escript serve NAME                                   prints when it can be called
%%   erpc.escript client SCENARIO SECONDS CALLS CASTS NODE...  prints the metrics
%%
%% Both print one JSON line and need epmd at ERL_EPMD_PORT and the cookie in HOME.
-module(erpc_bench).
-mode(compile).
-export([main/1, echo/1, tally/0, tallied/0]).

-define(WARM_UP_SHARE, 0.15).
-define(BATCH_SECONDS, 1.5).
-define(PATIENCE_MS, 20000).

main(["serve", Name]) ->
    end_with_parent(),
    start_distribution(list_to_atom(Name)),
    persistent_term:put(tally, counters:new(1, [])),
    io:format("{\"event\": \"ready\", \"node\": \"~s\", \"pid\": ~s}~n", [node(), os:getpid()]),
    receive after infinity -> ok end;
main(["client", Scenario, Seconds, Calls, Casts | Nodes]) ->
    end_with_parent(),
    start_distribution('client@127.0.0.1'),
    Budget = #{ms => round(list_to_float(Seconds) * 1000),
               calls => list_to_integer(Calls), casts => list_to_integer(Casts)},
    try measure(Scenario, [list_to_atom(Node) || Node <- Nodes], Budget) of
        Metrics -> io:format("{\"event\": \"result\", \"metrics\": {~s}}~n", [json(Metrics)])
    catch
        Class:Reason:Stack ->
            io:format(standard_error, "~p ~p ~p~n", [Class, Reason, Stack]),
            io:format("{\"event\": \"failed\", \"reason\": \"an Erlang ~s, see its log\"}~n", [Class])
    end,
    erlang:halt(0).

%% ---------------------------------------------------------------- what is called

echo(Value) -> Value.

tally() -> counters:add(persistent_term:get(tally), 1, 1).

tallied() -> counters:get(persistent_term:get(tally), 1).

%% ---------------------------------------------------------------- the scenarios

measure("S1", [Node | _], #{ms := Ms}) ->
    {Latencies, Cpu} = latencies(Node, Ms),
    quantiles(Latencies, "us", 1.0e3) ++ Cpu;
measure("C64" ++ _, [Node | _], #{ms := Ms}) ->
    crowd(64, fun() -> 5 = add(Node) end, fun(Counts) -> rate(Counts, Node, Ms) end);
measure("A", [Node | _], #{calls := Most, ms := Ms}) ->
    Run = fun(Count) ->
        Requests = [erpc:send_request(Node, erlang, '+', [2, 3]) || _ <- lists:seq(1, Count)],
        lists:foreach(fun(Request) -> 5 = erpc:receive_response(Request) end, Requests)
    end,
    batches(Run, Most, Node, Ms);
measure("CAST", [Node | _], #{casts := Most, ms := Ms}) ->
    Run = fun(Count) ->
        Wanted = erpc:call(Node, erpc_bench, tallied, []) + Count,
        lists:foreach(fun(_) -> erpc:cast(Node, erpc_bench, tally, []) end, lists:seq(1, Count)),
        wait_until(fun() -> erpc:call(Node, erpc_bench, tallied, []) >= Wanted end)
    end,
    batches(Run, Most, Node, Ms);
measure("P500K", [Node | _], #{ms := Ms}) -> transfer(fun bulk/2, 16, 500000, Node, Ms);
measure("P500K-echo", [Node | _], #{ms := Ms}) -> transfer(fun there_and_back/2, 16, 500000, Node, Ms);
measure("P10M", [Node | _], #{ms := Ms}) -> transfer(fun bulk/2, 4, 10000000, Node, Ms);
measure("HOL", [Node | _], #{ms := Ms}) ->
    Payload = payload(10000000),
    crowd(4, fun() -> bulk(Node, Payload) end, fun(Counts) ->
        Alone = proplists:get_value("rate", rate(Counts, Node, Ms div 2)),
        {Started, Calls} = {now_ns(), counters:get(Counts, 1)},
        {Latencies, _} = latencies(Node, Ms),
        wait_until(fun() -> counters:get(Counts, 1) - Calls >= 4 end),
        Rate = (counters:get(Counts, 1) - Calls) / (now_ns() - Started) * 1.0e9,
        quantiles(Latencies, "ms", 1.0e6)
            ++ [{"mb_per_second", Rate * 10}, {"share_of_alone", Rate / Alone}]
    end);
measure("MC8", Nodes, #{ms := Ms}) ->
    Expected = [{ok, 5} || _ <- Nodes],
    Call = fun() -> Expected = erpc:multicall(Nodes, erlang, '+', [2, 3]) end,
    repeat(Call, now_ns() + warm_up(Ms) * 1000000),
    Before = cpu(Nodes),
    Started = now_ns(),
    Latencies = repeat(Call, Started + Ms * 1000000),
    Seconds = (now_ns() - Started) / 1.0e9,
    [{"rate", length(Latencies) / Seconds} | cpu_a_call(Before, cpu(Nodes), length(Latencies))].

add(Node) -> erpc:call(Node, erlang, '+', [2, 3]).

bulk(Node, Payload) ->
    Size = byte_size(Payload),
    Size = erpc:call(Node, erlang, byte_size, [Payload]).

there_and_back(Node, Payload) ->
    Size = byte_size(Payload),
    Size = byte_size(erpc:call(Node, erpc_bench, echo, [Payload])).

payload(Size) -> binary:copy(<<"x">>, Size).

transfer(Call, Callers, Size, Node, Ms) ->
    Payload = payload(Size),
    crowd(Callers, fun() -> Call(Node, Payload) end, fun(Counts) ->
        [{"rate", Rate} | Cpu] = rate(Counts, Node, Ms),
        [{"mb_per_second", Rate * Size / 1.0e6} | Cpu]
    end).

%% ---------------------------------------------------------------- windows

%% Processes that call in a loop while Look(Counts) runs; its value. One that fails ends us all.
crowd(Size, Call, Look) ->
    {Counts, Begun} = {counters:new(1, []), counters:new(1, [])},
    Callers = [spawn_link(fun() ->
        Call(),
        counters:add(Begun, 1, 1),
        call_for_ever(Call, Counts)
    end) || _ <- lists:seq(1, Size)],
    wait_until(fun() -> counters:get(Begun, 1) =:= Size end),
    Found = Look(Counts),
    lists:foreach(fun(Caller) -> unlink(Caller), exit(Caller, kill) end, Callers),
    Found.

call_for_ever(Call, Counts) ->
    Call(),
    counters:add(Counts, 1, 1),
    call_for_ever(Call, Counts).

rate(Counts, Node, Ms) ->
    timer:sleep(warm_up(Ms)),
    {Before, Started, First} = {cpu([Node]), now_ns(), counters:get(Counts, 1)},
    timer:sleep(Ms),
    wait_until(fun() -> counters:get(Counts, 1) - First >= 8 end),
    {Calls, Seconds} = {counters:get(Counts, 1) - First, (now_ns() - Started) / 1.0e9},
    [{"rate", Calls / Seconds} | cpu_a_call(Before, cpu([Node]), Calls)].

latencies(Node, Ms) ->
    Call = fun() -> 5 = add(Node) end,
    repeat(Call, now_ns() + warm_up(Ms) * 1000000),
    Before = cpu([Node]),
    Latencies = repeat(Call, now_ns() + Ms * 1000000),
    {Latencies, cpu_a_call(Before, cpu([Node]), length(Latencies))}.

%% Nanoseconds of each call until the end, eight at least.
repeat(Call, End) -> repeat(Call, End, 0, []).

repeat(Call, End, Count, Latencies) ->
    Started = now_ns(),
    Call(),
    Stopped = now_ns(),
    Found = [Stopped - Started | Latencies],
    case Stopped >= End andalso Count >= 7 of
        true -> Found;
        false -> repeat(Call, End, Count + 1, Found)
    end.

%% Batches as large as a trial says that time allows; their median rate.
batches(Run, Most, Node, Ms) ->
    Run(50),
    Trial = max(50, Most div 20),
    TrialNs = timed(Run, Trial),
    Fitting = round(Trial / TrialNs * ?BATCH_SECONDS * 1.0e9),
    Count = lists:max([Trial, Most div 10, min(Most, Fitting)]),
    {Before, End} = {cpu([Node]), now_ns() + Ms * 1000000},
    Rates = lists:sort(repeat_batches(Run, Count, End)),
    Cpu = cpu_a_call(Before, cpu([Node]), Count * length(Rates)),
    [{"rate", lists:nth(length(Rates) div 2 + 1, Rates)}, {"batch", Count} | Cpu].

repeat_batches(Run, Count, End) ->
    Rate = Count / timed(Run, Count) * 1.0e9,
    case now_ns() >= End of
        true -> [Rate];
        false -> [Rate | repeat_batches(Run, Count, End)]
    end.

timed(Run, Count) ->
    Started = now_ns(),
    Run(Count),
    now_ns() - Started.

wait_until(IsEnough) -> wait_until(IsEnough, erlang:monotonic_time(millisecond) + ?PATIENCE_MS).

wait_until(IsEnough, Deadline) ->
    case IsEnough() of
        true -> ok;
        false ->
            true = erlang:monotonic_time(millisecond) < Deadline,
            timer:sleep(2),
            wait_until(IsEnough, Deadline)
    end.

warm_up(Ms) -> max(20, round(Ms * ?WARM_UP_SHARE)).

now_ns() -> erlang:monotonic_time(nanosecond).

quantiles(Latencies, Unit, Divisor) ->
    Ranked = lists:sort(Latencies),
    At = fun(Share) ->
        lists:nth(min(length(Ranked), trunc(Share * length(Ranked)) + 1), Ranked) / Divisor
    end,
    [{"p50_" ++ Unit, At(0.5)}, {"p99_" ++ Unit, At(0.99)}].

%% Milliseconds of CPU time that were used here and there.
cpu(Nodes) ->
    There = [element(1, erpc:call(Node, erlang, statistics, [runtime])) || Node <- Nodes],
    {element(1, statistics(runtime)), lists:sum(There)}.

cpu_a_call({Own0, There0}, {Own1, There1}, Calls) ->
    {Own, There} = {(Own1 - Own0) / Calls * 1000, (There1 - There0) / Calls * 1000},
    [{"client_cpu_us", Own}, {"server_cpu_us", There}, {"cpu_us", Own + There}].

%% ---------------------------------------------------------------- processes

%% epmd may just be starting.
start_distribution(Name) ->
    application:set_env(kernel, inet_dist_use_interface, {127, 0, 0, 1}),
    logger:set_primary_config(level, none),
    start_distribution(Name, 50).

start_distribution(Name, Tries) ->
    case net_kernel:start([Name, longnames]) of
        {ok, _} -> logger:set_primary_config(level, warning);
        {error, _} when Tries > 0 -> timer:sleep(100), start_distribution(Name, Tries - 1)
    end.

end_with_parent() ->
    spawn(fun wait_for_end/0).

wait_for_end() ->
    case io:get_line("") of
        Line when is_list(Line) -> wait_for_end();
        _ -> erlang:halt(0)
    end.

json(Metrics) ->
    lists:join(", ", [io_lib:format("\"~s\": ~w", [Key, Value]) || {Key, Value} <- Metrics]).
