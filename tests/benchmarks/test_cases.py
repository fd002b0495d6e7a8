"""The cases, and how a run selects among them."""

from benchmarks.cases import CASES, KINDS, OPERATOR_CASES, select, tasks


def test_every_case_has_its_own_name_and_a_device():
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)
    assert all(case.devices for case in CASES)


def test_encoders_have_a_query_per_pixel():
    queries = {case.name: case.n_queries for case in OPERATOR_CASES}
    assert queries["encoder_800x1333_b2"] == 22223
    assert queries["encoder_1600x2666_b1"] == 88750
    assert queries["decoder300_800x1333_b2"] == 300


def test_quick_cases_are_the_same_but_small():
    for case in OPERATOR_CASES:
        quick = case.quick()
        assert (quick.name, quick.devices, len(quick.levels)) == (case.name, case.devices, len(case.levels))
        assert quick.batch * quick.n_queries * quick.pixels < 2**18


def test_patterns_select_by_kind_and_name():
    selected = [case.name for case in select(KINDS, ["operator/dino_*"])]
    assert selected == ["dino_encoder_800x1333_b4", "dino_decoder1100_800x1333_b4"]
    assert {case.kind for case in select(["matcher", "model"], [])} == {"matcher", "model"}
    assert select(KINDS, ["no such case"]) == []


def test_tasks_are_those_of_the_device():
    cases = select(["operator"], ["encoder_800x1333_b2", "encoder_480x640"])
    name = "operator/encoder_480x640_b1 float32"
    assert [str(task) for task in tasks(cases, "cpu")] == [f"{name} forward", f"{name} forward_backward"]
    on_gpu = {(task.case.name, task.dtype) for task in tasks(cases, "cuda")}
    assert on_gpu == {("encoder_800x1333_b2", dtype) for dtype in ("float32", "float16", "bfloat16")}
