"""The HTTP server: what it answers, what it refuses, and how it behaves under load."""

import asyncio
import contextlib
import json
import resource
import threading
import zlib

import pytest

from recipe.conversations.messages import Message
from recipe.core.errors import UsageError
from recipe.serving import server as server_module
from recipe.serving.access import Access
from recipe.serving.engine import Engine, Request, Sampling
from recipe.serving.open import open_folder
from recipe.serving.worker import Worker

CHAT = {"model": "tuned", "messages": [{"role": "user", "content": "Which colour is the sky?"}], "max_tokens": 12}
TEXT = {"model": "base", "prompt": "The sky is", "max_tokens": 8}


async def post(client, path, body, **headers):
    """(status, JSON body)"""
    response = await client.post(path, json=body, headers=headers)
    return response.status, await response.json()


async def events(response):
    """The JSON values of a stream; the last line must be [DONE]."""
    lines = [line for line in (await response.text()).split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("model", ["base", "tuned"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.3, "top_p": 0.9, "top_k": 30, "seed": 5},
        {"temperature": 1, "top_p": 1, "repetition_penalty": 2, "seed": 5},  # whole numbers, as many clients send them
        {"temperature": 1e-300},
    ],
)
def test_stream_joins_to_the_answer_and_to_the_engine(with_client, engine, model, settings):
    async def check(client, server):
        body = {**CHAT, "model": model, "max_tokens": 40, **settings}
        status, whole = await post(client, "/v1/chat/completions", body)
        assert status == 200
        options = {"stream": True, "stream_options": {"include_usage": True}}
        response = await client.post("/v1/chat/completions", json={**body, **options})
        assert response.headers["Content-Type"] == "text/event-stream"
        chunks = await events(response)
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
        assert text == whole["choices"][0]["message"]["content"]
        assert chunks[-1]["usage"] == whole["usage"]
        assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        sampling = Sampling(
            **{key: value if key in ("top_k", "seed") else float(value) for key, value in settings.items()}
        )
        request = engine.chat_request(model, [Message("user", "Which colour is the sky?")], 40, sampling=sampling)
        assert text == engine.answer(request)
        assert whole["usage"]["prompt_tokens"] == len(request.prompt)

    with_client(check)


def test_completions_with_several_prompts(with_client, engine):
    async def check(client, server):
        ids = server_module.openai_api.encode_text(engine, "The sky is")
        status, strings = await post(client, "/v1/completions", {**TEXT, "prompt": ["The sky is", "The grass"]})
        assert status == 200 and [choice["index"] for choice in strings["choices"]] == [0, 1]
        _, tokens = await post(client, "/v1/completions", {**TEXT, "prompt": ids})
        assert tokens["choices"][0]["text"] == strings["choices"][0]["text"]
        response = await client.post("/v1/completions", json={**TEXT, "stream": True})
        joined = "".join(chunk["choices"][0]["text"] for chunk in await events(response))
        assert joined == tokens["choices"][0]["text"]

    with_client(check)


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("as_tokens", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_echo_gives_the_likelihoods_that_lm_eval_sums(with_client, engine, monkeypatch, max_tokens, as_tokens, ends):
    import torch

    from recipe.model.likelihood import trained_nll

    context, continuation = "Which colour is the sky today?", " The sky is blue, and the grass is green."

    async def check(client, server):
        encode = server_module.openai_api.encode_text
        ids, begin = encode(engine, context + continuation), len(encode(engine, context))
        prompt = [ids] if as_tokens else [context + continuation]
        if ends:  # the model ends the text here
            pieces = engine.stream(Request("tuned", tuple(ids), 1, logprobs=0))
            (following,) = (token.id for piece in pieces for token in piece.tokens)
            monkeypatch.setattr(type(engine.tokenizer), "eos_token_id", following, raising=False)
        body = {"model": "tuned", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1}
        status, answer = await post(client, "/v1/completions", {**body, "seed": 1234, "echo": True})
        assert status == 200
        logprobs = answer["choices"][0]["logprobs"]
        end = len(ids)  # lm-eval asks for one more token and drops the last value, whatever that token is
        assert len(logprobs["token_logprobs"]) == end + max_tokens == len(logprobs["top_logprobs"])
        labels = [-100] * begin + ids[begin:]
        batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels]), "lengths": [end], "prefix": 0}
        with torch.no_grad():
            nll, _ = trained_nll(engine.model, {**batch, "position_ids": torch.arange(end)[None]})
        assert -sum(logprobs["token_logprobs"][begin:end]) == pytest.approx(nll.item(), rel=1e-5)
        best = [max(top.values()) for top in logprobs["top_logprobs"][1:]]
        assert all(top >= value for top, value in zip(best, logprobs["token_logprobs"][1:], strict=True))
        if not as_tokens:
            assert answer["choices"][0]["text"].startswith(context + continuation)
            offsets = logprobs["text_offset"]
            assert offsets == sorted(offsets) and offsets[-1] <= len(answer["choices"][0]["text"])

    with_client(check)


WRONG = {
    "unknown fields: foo, logit_bias": {**CHAT, "foo": 1, "logit_bias": {}},
    "with user first and last; only": {**CHAT, "messages": CHAT["messages"] * 2},
    "only the first message of all": {**CHAT, "messages": [*CHAT["messages"], {"role": "system", "content": "x"}]},
    "user and assistant in turn": {**CHAT, "messages": [{"role": "system", "content": "x"}]},
    "messages must be a list": {**CHAT, "messages": []},
    "messages must be a list of 1 to 200": {**CHAT, "messages": CHAT["messages"] * 201},
    "role and content": {**CHAT, "messages": [{"role": "user", "content": "x", "name": "y"}]},
    "must be system, user or assistant": {**CHAT, "messages": [{"role": "tool", "content": "x"}]},
    "half of a surrogate": {**CHAT, "messages": [{"role": "user", "content": "\ud800"}]},
    "n must be 1": {**CHAT, "n": 2},
    "temperature must be a number": {**CHAT, "temperature": "hot"},
    "top_p must be a number": {**CHAT, "top_p": 0},
    "seed must be an integer": {**CHAT, "seed": True},
    "stop must be at most 4": {**CHAT, "stop": ["a"] * 5},
    "stream must be true or false": {**CHAT, "stream": 1},
    "context of the model has 512": {**CHAT, "max_tokens": 4000},
    "has no such model|no such model": {**CHAT, "model": "gpt-4"},
    "model must be a string": {"messages": CHAT["messages"]},
    "not a JSON object": [1, 2],
    "stream_options": {**CHAT, "stream_options": {"x": 1}},
    "top_logprobs needs": {**CHAT, "top_logprobs": 2},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_request_is_one_sentence(with_client, sentence):
    async def check(client, server):
        status, answer = await post(client, "/v1/chat/completions", WRONG[sentence])
        assert status in (400, 404)
        assert sentence.split("|")[0] in answer["error"]["message"]
        assert answer["error"]["type"] == "invalid_request_error"
        assert (await post(client, "/v1/chat/completions", CHAT))[0] == 200

    with_client(check)


def test_a_template_that_got_a_hole_is_one_sentence_and_the_server_keeps_serving(with_client, engine, tmp_path):
    own = 'user_turn = "Q: {user}\\n"\nassistant_header = "A:"\nassistant_turn = " {assistant}{eos}"\n'
    file = tmp_path / "own.toml"
    file.write_text(own + 'system_turn = "{system}\\n"\n')
    engine.template = str(file)

    async def check(client, server):
        assert (await post(client, "/v1/chat/completions", CHAT))[0] == 200
        file.write_text(own)
        status, answer = await post(client, "/v1/chat/completions", CHAT)
        assert status == 400 and "own.toml lacks system_turn" in answer["error"]["message"]
        engine.template = "vicuna_v1.1"
        assert (await post(client, "/v1/chat/completions", CHAT))[0] == 200

    with_client(check)


def test_what_is_not_json_is_refused(with_client):
    async def check(client, server):
        path = "/v1/chat/completions"
        for data in (b"{", b"\xff", b"[" * 100_000, b'{"model": ' + b"9" * 5000 + b"}"):
            response = await client.post(path, data=data, headers={"Content-Type": "application/json"})
            assert response.status == 400, data[:10]
        simple = await client.post(path, data=json.dumps(CHAT), headers={"Content-Type": "text/plain"})
        assert simple.status == 415  # what a form of another site can send without asking
        assert (await client.get("/nothing")).status == 404
        assert (await client.get(path)).status == 405

    with_client(check)


@pytest.mark.parametrize(
    "host", ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com:8000", "localhost:x", "[::1", ""]
)
def test_a_forged_host_is_refused(with_client, host):
    async def check(client, server):
        response = await client.get("/v1/models", headers={"Host": host})
        assert response.status in (400, 403)
        assert "tuned" not in await response.text()

    with_client(check)


def test_another_origin_is_refused_and_gets_no_cors(with_client):
    async def check(client, server):
        for origin in ("http://evil.com", "null", "http://127.0.0.1:1"):
            status, _ = await post(client, "/v1/chat/completions", CHAT, Origin=origin)
            assert status == 403
        own = f"http://{client.host}:{client.port}"
        response = await client.post("/v1/chat/completions", json=CHAT, headers={"Origin": own})
        assert response.status == 200
        assert not [name for name in response.headers if name.lower().startswith("access-control")]
        preflight = await client.options("/v1/chat/completions", headers={"Origin": own})
        assert preflight.status == 405

    with_client(check)


def test_the_key_is_asked_for(with_client):
    async def check(client, server):
        assert (await client.get("/v1/models")).status == 401
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer " + "x" * 20})).status == 401
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer " + "k" * 20})).status == 200
        assert (await client.get("/health")).status == 200
        assert (await client.get("/")).status == 200

    with_client(check, key="k" * 20, host="0.0.0.0")


def test_only_loopback_without_a_key():
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        assert Access(host).loopback
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "127.0.0.1.evil.com"):
        with pytest.raises(UsageError, match="RECIPE_API_KEY"):
            Access(host)
    with pytest.raises(UsageError, match="16 or more"):
        Access("0.0.0.0", "short")
    assert "secret" not in repr(Access("0.0.0.0", "secret" * 4))
    reachable = Access("0.0.0.0", "k" * 16)
    assert reachable.host_allowed("192.168.1.2:8000") and not reachable.host_allowed("evil.com:8000")


def test_a_huge_body_is_refused(with_client):
    async def check(client, server):
        body = {**CHAT, "messages": [{"role": "user", "content": "x" * 1_100_000}]}
        status, answer = await post(client, "/v1/chat/completions", body)
        assert status == 413 and "1000000 bytes" in answer["error"]["message"]

    with_client(check)


def test_a_body_that_unpacks_to_hundreds_of_megabytes_is_refused(with_client):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(b"x" * 1_000_000) for _ in range(400)) + packer.flush()

    async def check(client, server):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        response = await client.post("/v1/chat/completions", data=bomb, headers=headers)
        assert response.status == 413
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB

    with_client(check)


def test_a_connection_that_sends_no_whole_request_is_closed(with_client, engine, monkeypatch):
    """Nothing at all, and a header every now and then, against the server as the command starts it."""
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.5)

    async def talk(port, drip):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(100):
            if drip:
                writer.write(b"GET / HTTP/1.1\r\n" if drip == 1 else b"X-Name: value\r\n")
                drip = 2
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(reader.read(), 0.1)
        raise AssertionError("the connection is still open")

    async def session():
        bound = server_module.bind("127.0.0.1", 0)
        serving = asyncio.create_task(server_module.serve(server_module.Server(engine, Access("127.0.0.1")), bound))
        await asyncio.sleep(0.1)
        try:
            assert await asyncio.gather(*(talk(bound.getsockname()[1], drip) for drip in (0, 1))) == [b"", b""]
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(session())


def test_a_slow_body_is_given_up(with_client, monkeypatch):
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.3)

    async def check(client, server):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{client.port}\r\n"
        writer.write((head + "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{").encode())
        answer = await asyncio.wait_for(reader.readline(), 5)
        assert b"408" in answer
        writer.close()

    with_client(check)


def test_a_hundred_clients_are_answered_or_refused(with_client):
    async def check(client, server):
        tasks = [post(client, "/v1/chat/completions", {**CHAT, "max_tokens": 4}) for _ in range(100)]
        statuses = [status for status, _ in await asyncio.gather(*tasks)]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 5
        assert (await post(client, "/v1/chat/completions", CHAT))[0] == 200
        while server.worker.load != (0, 0):
            await asyncio.sleep(0.01)

    with_client(lambda client, server: asyncio.wait_for(check(client, server), 60), worker=Worker(active=2, waiting=3))


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_stops_the_generation_within_one_token(with_client, engine, monkeypatch, streamed):
    """The engine waits in the middle of a token until the client has left, and then may not begin another one."""
    steps, left, real = [], threading.Event(), Engine._step

    def step(self, *arguments):
        steps.append(1)
        if len(steps) == 5:
            left.wait(10)
        return real(self, *arguments)

    monkeypatch.setattr(Engine, "_step", step)

    async def check(client, server):
        _, writer = await asyncio.open_connection(client.host, client.port)
        body = json.dumps({"model": "tuned", "prompt": "The sky", "max_tokens": 400, "stream": streamed}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{client.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        while len(steps) < 5:
            await asyncio.sleep(0.01)
        (job,) = server.worker._active
        writer.transport.abort()
        while not job.cancelled.is_set():
            await asyncio.sleep(0.01)
        left.set()
        while server.worker.load != (0, 0):
            await asyncio.sleep(0.01)
        assert len(steps) == 5

    with_client(lambda client, server: asyncio.wait_for(check(client, server), 10))


def test_a_failure_inside_keeps_the_server_and_tells_nothing(with_client, engine, monkeypatch, capfd):
    answer = engine.stream

    def broken(request, cancelled=None):
        raise RuntimeError("the user wrote: secret words")

    async def check(client, server):
        monkeypatch.setattr(engine, "stream", broken)
        status, body = await post(client, "/v1/chat/completions", CHAT)
        assert status == 500 and "secret" not in json.dumps(body)
        monkeypatch.setattr(engine, "stream", answer)
        assert (await post(client, "/v1/chat/completions", CHAT))[0] == 200

    with_client(check)
    out, err = capfd.readouterr()
    assert "secret" not in out + err and "RuntimeError" in err


def test_nothing_that_is_said_is_logged(with_client, capfd, caplog):
    async def check(client, server):
        body = {**CHAT, "messages": [{"role": "user", "content": "my password is swordfish"}]}
        assert (await post(client, "/v1/chat/completions", body))[0] == 200
        assert (await post(client, "/v1/chat/completions", {**body, "swordfish": 1}))[0] == 400

    with_client(check)
    out, err = capfd.readouterr()
    assert "swordfish" not in out + err + caplog.text


def test_the_openai_client_understands_everything(tiny_base, with_client):
    """The server of a folder of weights."""
    openai = pytest.importorskip("openai", reason="the openai client is not installed: it was not tried")

    def talk(address):
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["model"]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        options = {"model": "model", "max_completion_tokens": 12, "temperature": 0.0}
        whole = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **options)
        chunks = client.chat.completions.create(
            messages=messages, stream=True, stream_options={"include_usage": True}, **options
        )
        chunks = list(chunks)
        joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert joined == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
        text = client.completions.create(model="model", prompt="The sky", max_tokens=4, logprobs=2, echo=True)
        assert text.choices[0].text.startswith("The sky") and text.choices[0].logprobs.token_logprobs[0] is None
        with pytest.raises(openai.BadRequestError, match="unknown fields: logit_bias"):
            client.chat.completions.create(messages=messages, logit_bias={}, **options)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4", messages=messages)

    async def check(client, server):
        await asyncio.to_thread(talk, f"http://{client.host}:{client.port}/v1")

    with_client(check, engine=open_folder(tiny_base, "fp32"))
