"""Two more figures of a head search: what its hyperparameters matter, and what was found by when."""

from sslfast.report.contents import Search
from sslfast.report.drawing import BLUE, VERMILLION, Figure, axis, layout, legend_above
from sslfast.report.search_figures import accuracy_range, describe, title_of


def importance(search: Search) -> Figure:
    """Draw each hyperparameter's share of the accuracy's variance, the largest on top."""
    ranked = sorted(search.importance.items(), key=lambda item: item[1])
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "x": [100 * share for _, share in ranked],
                "y": [title_of(name).replace("<br>", " ") for name, _ in ranked],
                "marker": {"color": BLUE},
                "text": [f"{100 * share:.0f} %" for _, share in ranked],
                "textposition": "auto",
                "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
            }
        ],
        "layout": layout(
            80 + 34 * len(ranked),
            xaxis=axis("share of the variance between trials (%)", rangemode="tozero"),
            yaxis={"automargin": True, "fixedrange": True, "tickfont": {"size": 12}},
        ),
    }


def over_time(search: Search) -> Figure:
    """Draw the accuracy of every trial at the moment it was finished, and the best until then."""
    trials = sorted(
        (trial for trial in search.finished() if trial.finished is not None), key=lambda trial: trial.finished or 0.0
    )
    last = max((trial.finished or 0.0 for trial in trials), default=0.0)
    unit, seconds = next(((u, s) for u, s in (("h", 3600.0), ("min", 60.0)) if last >= 2 * s), ("s", 1.0))
    times = [(trial.finished or 0.0) / seconds for trial in trials]
    values = [100 * (trial.value or 0.0) for trial in trials]
    best = [max(values[: count + 1]) for count in range(len(values))]
    low, high = accuracy_range(trials)
    room = 0.06 * (high - low)
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": times,
                "y": best,
                "line": {"color": VERMILLION, "width": 2.5, "shape": "hv"},
                "hovertemplate": f"best after %{{x:.1f}} {unit}: %{{y:.2f}} %<extra></extra>",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "one trial",
                "x": times,
                "y": values,
                "marker": {"color": BLUE, "size": 8, "line": {"color": "#FFFFFF", "width": 1}},
                "text": [f"trial {trial.number}<br>{describe(trial)}" for trial in trials],
                "hovertemplate": f"%{{x:.1f}} {unit}: %{{y:.2f}} %<br>%{{text}}<extra></extra>",
            },
        ],
        "layout": layout(
            340,
            showlegend=True,
            legend=legend_above(),
            xaxis=axis(f"time since the first trial began ({unit})", rangemode="tozero"),
            yaxis=axis("validation accuracy (%)", range=[low - room, high + room]),
        ),
    }
