"""The benchmark of layers' kernels measures each of them, and restores the selection."""

from benchmarks import layer_kernels

from deformdetr.kernels import _layer_kernels


def test_table_has_every_kernel(capsys):
    before = _layer_kernels._selected
    layer_kernels.main(["--quick", "--rounds", "1"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]
    assert [row[0] for row in rows] == [*(f"| {name}" for name in layer_kernels.KERNELS), "| all"]
    assert all(float(row[1]) > 0 and float(row[2].rstrip(" |")) > 0 for row in rows)
    assert _layer_kernels._selected is before
