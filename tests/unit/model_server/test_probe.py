"""What the engine says over HTTP, and ports that are taken."""

import json
import socket

import httpx2
import pytest

from model_server.errors import ConfigurationError, PortInUse
from model_server.hang_detector import Pulse
from model_server.probe import EngineProbe, listen, require_free_port

METRICS = """# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",kv_cache_max_concurrency="11.375",kv_cache_size_tokens="46592",num_gpu_blocks="364"} 1.0
"""


def probe(answer):
    """A probe whose engine answers with `answer(request)`."""
    return EngineProbe("http://engine", transport=httpx2.MockTransport(answer))


def refuse(request):
    raise httpx2.ConnectError("refused", request=request)


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (404, False)])
async def test_ready_is_health_with_200(status, ready):
    """Only a 200 of /health counts."""
    async with probe(
        lambda request: httpx2.Response(status if request.url.path == "/health" else 200)
    ) as engine:
        assert await engine.is_ready() is ready


async def test_nobody_there_is_not_ready_and_unknown():
    """A refused connection is an answer too."""
    async with probe(refuse) as engine:
        assert await engine.is_ready() is False
        assert await engine.kv_cache_tokens() is None


@pytest.mark.parametrize(
    ("status", "text", "tokens"),
    [
        (200, METRICS, 46_592),
        (200, METRICS.replace('"46592"', '"None"'), None),
        (200, "", None),
        (500, METRICS, None),
    ],
)
async def test_kv_tokens_are_read_or_unknown(status, text, tokens):
    """The size is read from vllm:cache_config_info; whatever is missing is unknown, not zero."""
    async with probe(lambda _: httpx2.Response(status, text=text)) as engine:
        assert await engine.kv_cache_tokens() == tokens


PULSE = """vllm:num_requests_running{engine="0"} %d
vllm:num_requests_waiting{engine="0"} %d
vllm:iteration_tokens_total_count{engine="0"} 40.0
vllm:iteration_tokens_total_sum{engine="0"} 900.0
vllm:prompt_tokens_total{engine="0"} 3.2e2
vllm:generation_tokens_total{engine="0"} 25
"""


@pytest.mark.parametrize(
    ("status", "text", "pulse"),
    [
        (200, PULSE % (0, 0), Pulse(385.0, busy=False)),
        (200, PULSE % (1, 0), Pulse(385.0, busy=True)),
        (200, PULSE % (0, 7), Pulse(385.0, busy=True)),
        (200, PULSE.replace("25", "nothing") % (0, 0), None),
        (200, METRICS, None),
        (503, PULSE % (0, 0), None),
    ],
)
async def test_the_pulse_is_what_the_engine_got_done(status, text, pulse):
    """Steps and tokens, and whether it has requests; a page that does not say is no pulse."""
    async with probe(lambda _: httpx2.Response(status, text=text)) as engine:
        assert await engine.pulse() == pulse


@pytest.mark.parametrize(("status", "answered"), [(200, True), (503, False), (400, False)])
async def test_a_canary_asks_for_one_token_and_takes_only_that_for_an_answer(status, answered):
    """A refusal says nothing of whether the engine works."""
    asked = []

    def answer(request):
        asked.append((request.url.path, json.loads(request.content)["max_tokens"]))
        return httpx2.Response(status)

    async with probe(answer) as engine:
        assert await engine.canary("m") is answered
    assert asked == [("/v1/completions", 1)]


async def test_an_engine_without_plain_completions_is_asked_by_chat():
    """404 is no refusal but another wire: the canary goes there."""
    asked = []

    def answer(request):
        asked.append(request.url.path)
        return httpx2.Response(404 if request.url.path == "/v1/completions" else 200)

    async with probe(answer) as engine:
        assert await engine.canary("m") is True
    assert asked == ["/v1/completions", "/v1/chat/completions"]


async def test_tgis_page_has_a_pulse_too():
    """Its own series: what it has got done, whether it is busy, how many requests it ended."""
    page = (
        'tgi_batch_inference_count{method="decode"} 40\ntgi_batch_inference_count{method="prefill"} 2\n'
        "tgi_queue_size 0\ntgi_batch_current_size 1\ntgi_request_success 5\n"
    )
    async with probe(lambda _: httpx2.Response(200, text=page)) as engine:
        assert await engine.pulse() == Pulse(42.0, busy=True, finished=5.0)


async def test_an_engine_that_is_not_there_has_neither():
    """A refused connection is not an error of ours."""
    async with probe(refuse) as engine:
        assert await engine.pulse() is None
        assert await engine.canary("m") is False


def test_a_port_in_use_names_port_and_setting():
    """The message names the port, and the variable that changes it."""
    with listen("127.0.0.1", 0, variable="X") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"Port {port} .*MODEL_SERVER_ENGINE_PORT"):
            require_free_port("127.0.0.1", port, variable="MODEL_SERVER_ENGINE_PORT")
    require_free_port("127.0.0.1", port, variable="MODEL_SERVER_ENGINE_PORT")


@pytest.mark.parametrize("host", ["192.0.2.1", "not an address"])
def test_an_address_that_is_not_ours_is_a_wrong_setting(host):
    """An address of another machine, or none at all, is not a port in use."""
    with pytest.raises(ConfigurationError):
        require_free_port(host, 0, variable="X")


def test_connections_that_wind_down_do_not_hold_the_port():
    """A restarted engine gets its port back at once, though old connections are in TIME_WAIT."""
    with listen("127.0.0.1", 0, variable="X") as first:
        address = first.getsockname()
        with socket.create_connection(address[:2]) as client:
            first.accept()[0].close()
            client.recv(1)
    require_free_port("127.0.0.1", address[1], variable="X")
