"""The page of a sweep without a browser: what it holds, what it asks for, how large it is."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from podrt.bench.sweep.page import code as code_module
from podrt.bench.sweep.page.code import KernelCode, codes_of, packed
from podrt.bench.sweep.page.contents import contents_of
from podrt.bench.sweep.page.page import MAX_BYTES, page_of
from podrt.bench.sweep.page.trace import read_trace
from podrt.bench.sweep.records import Sweep, load
from podrt.errors import PodrtError
from podrt.explore.timeline import Span, Timeline

EXAMPLE = Path(__file__).resolve().parents[1] / "data" / "sweep.jsonl"
HOSTILE = "</script><script>alert('x')</script><!-- \" & \u2028"
_VOID = {"meta", "link", "input"}


class _Parsed(HTMLParser):
    """Tags that are open, all attributes, and the text of scripts by their type."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.scripts = [], [], [], {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts[self.open[-1][1].get("type", "code")] = data


@pytest.fixture(scope="module")
def sweep():
    return load(EXAMPLE)


@pytest.fixture(scope="module")
def contents(sweep):
    return contents_of(sweep)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.json"
    spans = (Span(0, "prefill", 0.0, 2.5), Span(0, "decode", 0.5, 3.0), Span(10, "decode", 0, 1))
    path.write_text(json.dumps(Timeline("NVIDIA H100", 132, spans).chrome_trace()))
    return path


def data_of(page):
    return json.loads(_Parsed(page).scripts["application/json"])


def test_the_page_parses_and_asks_for_nothing(contents, trace):
    page = page_of(contents, [KernelCode("k", packed("x"))], read_trace(trace), title="sweep")
    parsed = _Parsed(page)
    assert parsed.open == []
    assert parsed.tags.count("script") == 2
    values = {value for name, value in parsed.attributes if name in ("src", "href", "action")}
    assert all(value == "data:," or value.startswith("#") for value in values)
    assert set(re.findall(r"https?://[^\"' )]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|document\.write", page)
    assert "default-src 'none'" in page


def test_the_page_holds_every_record_and_view(sweep, contents):
    data = data_of(page_of(contents, [], title="sweep"))
    (gpu,) = data["gpus"]
    assert len(gpu["results"]) == len(sweep.results)
    held = {each["key"]: each for each in gpu["results"]}
    for result in sweep.results:
        assert held[result.key]["samples_us"] == result.samples_us
        assert held[result.key]["policy"] == result.policy
    assert len(data["skips"]) == len(sweep.skips)
    assert data["environments"] == dict(sweep.environments)
    assert {each["title"].split()[0] for each in gpu["maps"]} == {
        "allocation",
        "family",
        "prefill",
        "ratio",
    }
    assert {each["policy"] for each in gpu["roofline"]} > {"auto", "serial"}


def test_every_cell_leads_to_a_record_and_its_plan(contents):
    (gpu,) = contents["gpus"]
    records = {(each["variant"], each["case"]): each for each in gpu["results"]}
    cells = [cell for each in gpu["maps"] for line in each["cells"] for cell in line if cell]
    assert cells
    for cell in cells:
        plan = gpu["plans"][records[cell["variant"], cell["case"]]["plan"]]
        assert sum(each["is_chosen"] for each in plan["candidates"]) == 1


def test_hostile_names_stay_text(sweep):
    first = replace(sweep.results[0], reason=HOSTILE, worst=HOSTILE)
    environments = {name: {**each, "command": HOSTILE} for name, each in sweep.environments.items()}
    hostile = Sweep(environments, (first, *sweep.results[1:]), sweep.skips)
    page = page_of(contents_of(hostile), [], title=HOSTILE)
    assert "<script>alert" not in page
    assert _Parsed(page).tags.count("script") == 2
    data = data_of(page)
    assert data["title"] == data["gpus"][0]["results"][0]["reason"] == HOSTILE


def test_what_is_beyond_the_bound_is_left_out_in_order(contents, trace):
    codes = [KernelCode("k", source="s" * 60_000, sass="a" * 60_000)]
    timeline = read_trace(trace)

    def size(codes, timeline=None):
        return len(page_of(contents, codes, timeline, title="t").encode())

    bare = size([])
    whole = page_of(contents, codes, timeline, title="t", max_bytes=bare + 130_000)
    assert data_of(whole)["notes"] == []
    for room, kept in ((100_000, "source"), (2_000, "timeline")):
        page = page_of(contents, codes, timeline, title="t", max_bytes=bare + room)
        data = data_of(page)
        assert len(page.encode()) <= bare + room
        assert "SASS" in data["notes"][0]
        assert data["kernels"][0]["sass"] is None
        assert (data["kernels"][0]["source"] is not None) == (kept == "source")
        assert data["timeline"] == timeline | {"spans": [list(s) for s in timeline["spans"]]}
    data = data_of(page_of(contents, codes, timeline, title="t", max_bytes=bare - 100))
    assert [note.split(": ")[1].split()[0] for note in data["notes"]] == [
        "SASS",
        "sources",
        "the",
        "the",
    ]
    assert len(data["gpus"][0]["results"]) == len(contents["gpus"][0]["results"])
    with pytest.raises(ValueError, match=r"its records alone make a page of .* allowed are 1000"):
        page_of(contents, codes, timeline, title="t", max_bytes=1000)
    assert MAX_BYTES <= 2_500_000


def test_a_sweep_without_results_or_ceilings_or_a_known_gpu(sweep):
    with pytest.raises(ValueError, match="sweep: has no results"):
        contents_of(Sweep({}, (), ()))
    environments = {
        name: {**each, "gpu": "NVIDIA X", "ceilings": None}
        for name, each in sweep.environments.items()
    }
    unknown = Sweep(environments, sweep.results, sweep.skips)
    (gpu,) = contents_of(unknown)["gpus"]
    assert gpu["roofline"] == []
    assert "no ceilings" in gpu["no_roofline"]
    assert all("no data sheet of NVIDIA X" in plan["why_not"] for plan in gpu["plans"])
    assert all(code.why_not and code.source is None for code in codes_of(unknown))


def test_code_is_of_the_kernels_that_won(sweep, monkeypatch):
    monkeypatch.setattr(code_module, "text_of", lambda variant, what: f"sass of {variant.name}")
    codes = codes_of(sweep)
    won = {r.kernels[0] for r in sweep.results if r.variant == "auto"}
    assert {code.name for code in codes} >= won
    for code in codes:
        assert f"sass of {code.name}" == gzip.decompress(base64.b64decode(code.sass)).decode()
        assert "__global__" in gzip.decompress(base64.b64decode(code.source)).decode()

    def refuse(variant, what):
        raise PodrtError("nvdisasm was not found")

    monkeypatch.setattr(code_module, "text_of", refuse)
    assert all(code.source and "nvdisasm was not found" in code.why_not for code in codes_of(sweep))


def test_a_trace_is_read(trace):
    found = read_trace(trace)
    assert (found["source"], found["gpu"]) == ("simulated", "NVIDIA H100")
    assert found["rows"] == ["0", "10"]
    assert found["roles"] == ["prefill", "decode"]
    assert found["spans"] == [[0, 0, 0, 0.0, 2.5], [0, 1, 1, 0.5, 2.5], [1, 1, 1, 0.0, 1.0]]


def test_a_trace_may_name_its_processes(tmp_path):
    path = tmp_path / "t.json"
    events = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "decode"}},
        {"ph": "X", "name": "item 7", "pid": 1, "tid": 3, "ts": 1, "dur": 2},
        {"ph": "i", "name": "dry", "pid": 1, "tid": 3, "ts": 2},
    ]
    path.write_text(json.dumps({"traceEvents": events}))
    found = read_trace(path)
    assert found["roles"] == ["decode"]
    assert found["names"] == ["item 7"]
    assert found["spans"] == [[0, 0, 0, 1.0, 2.0]]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"traceEvents": [{"ph": "X"}]}', "[1"])
def test_what_is_no_trace_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken.json: no trace of podrt explore trace"):
        read_trace(path)
    path.write_text('{"traceEvents": []}')
    with pytest.raises(ValueError, match=r"broken.json: has no spans"):
        read_trace(path)
