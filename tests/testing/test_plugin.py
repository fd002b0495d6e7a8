"""`pytest --pyargs deformdetr.testing`, as somebody runs it who has installed the library."""

import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
FUNCTIONS = """
from deformdetr import ms_deform_attn

def swapped(value, spatial_shapes, sampling_locations, attention_weights):
    return ms_deform_attn(value, spatial_shapes, sampling_locations.flip(-1), attention_weights)
"""


@pytest.fixture
def run(pytester: pytest.Pytester):
    """Return a function that runs pytest in this process and another folder, with the plugin."""
    pytester.makepyfile(mine=FUNCTIONS)
    pytester.syspathinsert()
    return lambda *arguments: pytester.runpytest_inprocess("-p", "deformdetr._pytest_plugin", *arguments)


def test_each_case_and_dtype_is_a_test(run):
    given = ("--pyargs", "deformdetr.testing", "--implementation", "mine:swapped", "--implementation-dtypes", "float32")
    done = run(*given, "-k", "pixel_centers or points_per_level", "--implementation-seed", "4", "-v")
    done.assert_outcomes(failed=1, passed=1, deselected=29)
    done.stdout.fnmatch_lines(
        ["*test_ms_deform_attn[[]pixel_centers-float32] FAILED*", "*FAILED*", "*on cpu: 4 failed (seed=4)"],
    )
    assert done.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "*--implementation MODULE:FUNCTION has to name the function*"),
        (("--implementation", "mine:missing"), "*has no attribute 'missing'*"),
        (("--implementation", "mine:FUNCTIONS.x"), "*mine:FUNCTIONS.x: *"),
        (("--implementation", "mine:swapped", "--implementation-dtypes", "int8"), "*among float64, *got *'int8'*"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], message: str, run):
    done = run("--pyargs", "deformdetr.testing", *arguments)
    assert done.ret != pytest.ExitCode.OK
    done.stdout.fnmatch_lines([message])


def test_other_sessions_have_no_such_option(run, pytester: pytest.Pytester):
    pytester.makepyfile("def test_nothing(): pass")
    run().assert_outcomes(passed=1)
    run("--implementation", "a").stderr.fnmatch_lines(["*unrecognized arguments: --implementation*"])


def test_installed_distribution_registers_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"deformdetr._pytest_plugin": "deformdetr._pytest_plugin"}
