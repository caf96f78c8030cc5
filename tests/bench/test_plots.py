import pytest

from sslfast.bench import plots
from sslfast.cli.main import main
from sslfast.errors import UsageError


def test_without_matplotlib_there_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert main(["bench", "--plot", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err.strip().endswith("--plot needs matplotlib: pip install 'sslfast[plot]'")


@pytest.fixture
def figures(monkeypatch, row, machine, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig

    def keep(figure, *words, **options):
        drawn.append(figure)
        return save(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(sizes, ops=("nt_xent",), **more):
        rows = [
            row(op, contender, scale * size[0] * (1 + place), size=list(size), machine="m", **more)
            for place, op in enumerate(ops)
            for size in sizes
            for contender, scale in (("sslfast", 0.01), ("reference eager", 0.02), ("lightly", 0.03), ("another", 0.04))
        ]
        for found in rows:
            found["peak_mb"] = found["median_ms"] / 7
        path = tmp_path / "plot.png"
        plots.draw(rows, {"m": {**machine[0], "limits": machine[1]}}, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        return drawn[-1]

    return draw


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text")))


def test_cases_are_dots_on_a_logarithmic_axis(figures):
    figure = figures([(256, 128), (512, 128)], ops=("nt_xent", "barlow_twins"))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and "milliseconds" in axes.get_xlabel()
    said = words(figure)
    assert all(word in said for word in ("256 × 128", "nt_xent", "barlow_twins", "PyTorch, eager", "×2.0", "Abacus"))


def test_growing_sizes_are_curves_of_time_and_memory(figures):
    figure = figures([(256, 128), (512, 128), (1024, 128)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Time in milliseconds", "Peak memory in megabytes"]
    for axes in figure.axes:
        assert axes.get_xscale() == axes.get_yscale() == "log"
        curves = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert len(curves) == 4 and len({line.get_color() for line in curves}) == 4
        assert len(axes.lines) == 5  # and the straight one
    assert "in proportion to N" in words(figure)


def test_memory_alone(figures, row, machine, tmp_path):
    rows = [
        {**{name: value for name, value in row(size=[size, 128], machine="m").items() if not name.endswith("_ms")}}
        | {"peak_mb": size / 10, "allocator": ""}
        for size in (256, 512, 1024)
    ]
    plots.draw(rows, {"m": machine[0]}, tmp_path / "memory.png")
    with pytest.raises(UsageError, match="three sizes that differ in one number"):
        plots.draw(rows[:2], {"m": machine[0]}, tmp_path / "memory.png")
    with pytest.raises(UsageError, match="nothing to draw"):
        plots.draw([], {}, tmp_path / "memory.png")
