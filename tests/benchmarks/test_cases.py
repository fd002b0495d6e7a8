"""The cases, and how some of them are chosen."""

from benchmarks.cases import CASES, KINDS, OPERATOR_CASES, select, tasks


def test_every_case_has_a_name_of_its_own_and_somewhere_to_run():
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)
    assert all(set(case.devices) <= {"cpu", "cuda"} and case.devices for case in CASES)


def test_encoders_have_a_query_per_pixel():
    pixels = {case.name: case.pixels for case in OPERATOR_CASES if case.queries is None}
    assert pixels["encoder_800x1333_b2"] == 22223
    assert pixels["encoder_1600x2666_b1"] == 88750
    assert all(case.n_queries == (case.queries or case.pixels) for case in OPERATOR_CASES)


def test_quick_cases_are_the_same_ones_but_small():
    for case in OPERATOR_CASES:
        quick = case.quick()
        assert (quick.name, quick.devices, len(quick.levels)) == (case.name, case.devices, len(case.levels))
        assert quick.batch * quick.n_queries * quick.pixels < 2**18


def test_patterns_select_by_kind_and_name():
    assert [case.name for case in select(KINDS, ["operator/dino_*"])] == [
        "dino_encoder_800x1333_b4",
        "dino_decoder1100_800x1333_b4",
    ]
    assert {case.kind for case in select(["matcher", "model"], [])} == {"matcher", "model"}
    assert select(KINDS, ["nothing of the kind"]) == []


def test_tasks_are_those_of_the_device():
    cases = select(["operator"], ["encoder_800x1333_b2", "encoder_480x640"])
    assert [str(task) for task in tasks(cases, "cpu")] == [
        "operator/encoder_480x640_b1 float32 forward",
        "operator/encoder_480x640_b1 float32 forward_backward",
    ]
    assert {(task.case.name, task.dtype) for task in tasks(cases, "cuda")} == {
        ("encoder_800x1333_b2", dtype) for dtype in ("float32", "float16", "bfloat16")
    }
