"""A tiny real run behind the engine, the server and a browser."""

import asyncio

import pytest
import torch

from recipe.core.config import Lora
from recipe.model.adapter import add_adapter
from recipe.model.load import load_base, load_tokenizer
from recipe.serving.access import Access
from recipe.serving.engine import Engine


@pytest.fixture(scope="session")
def tuned(tiny_base):
    """The tiny model with an adapter whose B is not zero, so that base and tuned model answer differently."""
    model = add_adapter(load_base(tiny_base, "fp32", torch.device("cpu")), Lora(rank=4, alpha=64), seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer(tiny_base):
    return load_tokenizer(tiny_base)


@pytest.fixture
def engine(tuned, tokenizer):
    return Engine(tuned, tokenizer, "vicuna_v1.1")


@pytest.fixture
def with_client(engine):
    """Run `async def check(client, server)` against the server, in this process."""
    from aiohttp.test_utils import TestClient, TestServer

    from recipe.serving.server import Server

    def run(check, key="", host="127.0.0.1", worker=None, engine=engine):
        async def session():
            server = Server(engine, Access(host, key), worker)
            started = TestServer(server.app(), handler_cancellation=True)
            async with TestClient(started) as client:
                await check(client, server)

        asyncio.run(session())

    return run
