"""The suites hold the points that they say they hold."""

from __future__ import annotations

from collections import Counter

import pytest

from podrt.bench.case import Case
from podrt.bench.suites import load_suite, parse_suite, suite_names
from podrt.policy.candidates import DECODE_ONLY_SMS, PREFILL_ONLY_SMS

GIB = 1 << 30
#: (query heads, KV heads) -> weights in GiB, tensor parallelism
MODELS = {
    (32, 8): (16, 1),
    (16, 4): (16, 2),
    (8, 2): (16, 4),
    (4, 1): (16, 8),
    (32, 4): (12, 1),
    (16, 2): (12, 2),
    (8, 1): (12, 4),
}


def group(suite, name):
    return [case for case in suite.cases if case.name.startswith(f"{name}/")]


def heads(case):
    return case.num_qo_heads, case.num_kv_heads


@pytest.fixture(scope="module")
def paper():
    return load_suite("paper")


@pytest.fixture(scope="module")
def full_paper():
    return load_suite("paper", full=True)


SHIPPED = ["balanced", "features", "paper", "peers", "solo", "traces"]


def test_suites_ship():
    assert suite_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_suite_parses_and_describes_itself(name):
    suite = load_suite(name)
    assert suite.cases
    assert suite.description
    assert all(case.dtype == "bfloat16" for case in suite.cases)


def test_figure_1_has_the_three_batches_of_table_1(paper):
    points = [(case.prefill, len(case.decode), case.decode[0]) for case in group(paper, "fig1")]
    assert points == [
        (((1024, 12288),), 80, 12287),
        (((12288, 12288),), 220, 12287),
        (((16384, 16384),), 250, 12287),
    ]
    assert {heads(case) for case in group(paper, "fig1")} == {(16, 4)}


def test_figure_6_has_both_sides_of_the_wave_boundary(paper, full_paper):
    subset, full = group(paper, "fig6"), group(full_paper, "fig6")
    assert {len(case.decode) for case in subset} == {66, 67}
    assert {len(case.decode) for case in full} == {54, 55, 66, 67}
    chunks = [case.prefill[0] for case in full if len(case.decode) == 66]
    assert chunks == [(512, 512 * number) for number in range(1, 33)]
    assert {case.name for case in subset} <= {case.name for case in full}


def test_figure_11_in_full_is_the_artifacts_sweep(full_paper):
    sweep = group(full_paper, "fig11")
    assert len(sweep) == 4410
    assert {heads(case) for case in sweep} == set(MODELS)
    decodes = Counter((heads(case), case.decode[0] + 1, len(case.decode)) for case in sweep)
    expected = {
        (model, context, int(share * most_decodes(model, context)))
        for model in MODELS
        for context in (4096, 8192, 12288, 16384, 20480)
        for share in (0.9, 0.95, 1.0)
    }
    assert set(decodes) == expected


def most_decodes(model, context):
    """How many requests fit beside the weights, by the artifact's rule."""
    weights, parallelism = MODELS[model]
    room = 0.9 * (80 - weights / parallelism) * GIB
    return int(room / (model[1] * 128 * 2 * 2 * 32 * context))


def test_figure_11_subset_is_part_of_the_sweep(paper, full_paper):
    subset = {case.name for case in group(paper, "fig11")}
    assert len(subset) == 42
    assert subset <= {case.name for case in group(full_paper, "fig11")}


def test_figures_13_and_14_and_table_8(paper):
    ctas = group(paper, "fig13")
    assert len(ctas) == 25
    assert {(case.prefill[0], len(case.decode)) for case in ctas} == {
        ((context, context), size)
        for context in (1024, 2048, 4096, 8192, 16384)
        for size in (8, 16, 32, 64, 128)
    }
    assert {case.policies for case in ctas} == {("ctas=2", "ctas=4")}
    ratios = group(paper, "fig14")
    assert {heads(case) for case in ratios} == {(32, 8), (32, 4)}
    assert {len(case.decode) for case in ratios} == {32, 64, 96, 128, 192}
    assert {case.prefill for case in ratios} == {((8192, 8192),)}
    splits = group(paper, "table8")
    assert [case.prefill[0] for case in splits] == [(512, 512 * n) for n in (29, 30, 31, 32)]
    assert {(heads(case), len(case.decode)) for case in splits} == {((16, 4), 64)}


def test_peers_has_the_fourteen_rows():
    cases = load_suite("peers").cases
    rows = {(*heads(c), *c.prefill[0], len(c.decode), c.decode[0]) for c in cases}
    assert len(cases) == 14
    assert (32, 4, 512, 4096, 64, 4096) in rows
    assert (16, 16, 1024, 8192, 54, 8192) in rows
    assert (8, 1, 2048, 16384, 128, 8192) in rows
    assert (64, 8, 2048, 32768, 64, 16384) in rows
    assert {case.page_size for case in cases} == {16}


def test_solo_has_one_side_per_case_and_a_contiguous_twin():
    cases = load_suite("solo").cases
    assert not any(case.is_hybrid for case in cases)
    layers = {(c.prefill, c.decode, heads(c)): set() for c in cases}
    for case in cases:
        layers[case.prefill, case.decode, heads(case)].add(case.page_size)
    assert sum(pages == {None, 16} for pages in layers.values()) == 6
    assert {case.head_dim for case in cases} == {64, 128, 256}


def test_traces_are_hybrid_and_within_budget():
    cases = load_suite("traces").cases
    assert len(cases) == 12
    for case in cases:
        assert case.is_hybrid
        budget = int(case.name.split("budget ")[1].split()[0])
        assert sum(case.q_lens) <= budget


@pytest.mark.parametrize("name", ["peers", "balanced", "traces"])
def test_the_best_is_over_the_allocations_that_explain_shows(name):
    grid = {f"decode-only={sms}" for sms in DECODE_ONLY_SMS}
    grid |= {f"prefill-only={sms}" for sms in PREFILL_ONLY_SMS}
    for case in load_suite(name).cases:
        assert {each for each in case.policies if "-only=" in each} == grid


def test_trace_dir_gives_the_batches_of_its_files(tmp_path):
    lines = "".join(f"{900 + number},{40 + number}\n" for number in range(40))
    (tmp_path / "mine.csv").write_text("num_prefill_tokens,num_decode_tokens\n" + lines)
    cases = load_suite("traces", trace_dir=tmp_path).cases
    assert {case.name.split("/")[-1].split()[0] for case in cases} == {"mine"}


def test_an_empty_trace_dir_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no CSV file"):
        load_suite("traces", trace_dir=tmp_path)


def test_a_suite_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[group]]\nname = "g"\nheads = [[8, 2]]\nhead_dims = [64]\n'
        "points = [{ prefill = [[3, 5], [2, 2]], decode = { requests = 2, kv_len = 7 } }]\n"
    )
    suite = load_suite(str(path))
    assert suite.name == "mine"
    (case,) = suite.cases
    assert case == Case(
        "g/8-2 d64 contiguous/3@5 + 2@2 + 2x7", 8, 2, 64, "bfloat16", None, ((3, 5), (2, 2)), (7, 7)
    )


ENTRY = {"name": "g", "heads": [[8, 2]], "points": [{"prefill": [[3, 5]]}]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"groups": []}, "unknown key"),
        ({"group": [{**ENTRY, "point": []}]}, "unknown key"),
        ({"group": [{"name": "g", "points": []}]}, "'heads' is missing"),
        ({"group": [{**ENTRY, "when": "never"}]}, "when='never'"),
        ({"group": [{**ENTRY, "points": [{"prefill": [[5, 3]]}]}]}, "1 <= q_len <= kv_len"),
        ({"group": [{**ENTRY, "points": [{}]}]}, "neither prefill nor decode"),
        ({"group": [{**ENTRY, "points": [{"decodes": 3}]}]}, "unknown key"),
        ({"group": [ENTRY, ENTRY]}, "two cases are called"),
    ],
)
def test_malformed_suites_are_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        parse_suite("mine", data)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ({"v_head_dim": 200}, "group 'g': v_head_dim=200: values may be narrower"),
        ({"v_head_dim": "x"}, "group 'g': v_head_dim='x': expected an int"),
        ({"head_dims": [100]}, "group 'g': head_dim=100: allowed are multiples of 8"),
        ({"heads": [[7, 2]]}, "group 'g': num_qo_heads=7: must be a multiple"),
        ({"dtype": "float32"}, "group 'g': dtype='float32': allowed are"),
    ],
)
def test_layers_that_podrt_has_not_are_refused_before_anything_is_measured(layer, reason):
    entry = {"name": "g", "heads": [[8, 2]], "points": [{"prefill": [[5, 30]]}], **layer}
    with pytest.raises(ValueError, match=reason):
        parse_suite("s", {"group": [entry]})


def test_unknown_suite_names_those_there_are():
    with pytest.raises(ValueError, match="balanced, features, paper, peers, solo, traces"):
        load_suite("nothing")


def test_work_of_a_case():
    case = Case("c", 4, 2, 64, "float16", None, ((2, 5),), (3,))
    pairs = 4 + 5  # token 0 sees 4 keys, token 1 all 5
    assert case.flops("prefill") == 4 * 4 * 64 * pairs
    assert case.flops("decode") == 4 * 4 * 64 * 3
    assert case.flops() == case.flops("prefill") + case.flops("decode")
    assert case.min_bytes("decode") == 2 * 64 * (2 * 4 + 2 * 3 * 2)
    assert case.prefill_tokens == 2
