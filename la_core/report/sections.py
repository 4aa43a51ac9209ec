"""What the page says, section by section: each takes what the run folder holds and gives markup."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np

from la_core import evaluate, health
from la_core.bank import unit
from la_core.report import figures
from la_core.report.contents import Contents
from la_core.report.markup import chart, grid, missing, notice, paragraph, picture, table
from la_core.report.record import MAP_CLASSES
from la_core.settings import Settings

RECORDER = "give train a la_core.report.Recorder(folder) among its callbacks"


def verdict(contents: Contents) -> str:
    """How far the run came, how good it is, and whether it is well, in a few lines."""
    status, metrics = contents.status, contents.metrics
    done, planned = len(metrics), status.get("epochs", contents.raw_settings.get("epochs", "?"))
    lines = [f"{str(status.get('status', 'unknown')).capitalize()} after {done} of {planned} epochs."]
    known = [(name, row[0]) for name, row in contents.table.items() if row and row[0] is not None]
    running = [r["knn"] for r in metrics if "knn" in r]
    if known:
        name, value = known[-1]
        others = ", ".join(f"{other} {x:.1%}" for other, x in known[:-1])
        lines.append(f"<strong>{value:.1%}</strong> weighted kNN accuracy {escape(name)} ({escape(others)}).")
    elif running:
        lines.append(f"<strong>{running[-1]:.1%}</strong> weighted kNN accuracy by the running measure.")
    elif metrics:
        lines.append(f"Loss {metrics[-1]['loss']:.3f} at the last epoch; no accuracy was measured.")
    found = contents.warnings()
    last = metrics[-1]["epoch"] if metrics else 0
    now = {name: sentence for name, (epochs, sentence) in found.items() if epochs[-1] == last}
    if now:
        first, *rest = now
        more = f'<p>Also: {escape(", ".join(rest))}. <a href="#health">See Health</a>.</p>' if rest else ""
        return paragraph(*lines) + notice(f"<p>{escape(now[first])}</p>{more}")
    if not contents.measured:
        lines.append("Its health was not recorded.")
    elif contents.settings is None:
        lines.append("The settings could not be read, so its health was not checked.")
        said = [f"The run warned at epoch {epoch}: {escape(sentence)}" for epoch, sentence in contents.said()[-1:]]
        return paragraph(*lines) + "".join(notice(f'<p>{line} <a href="#health">See Health</a>.</p>') for line in said)
    else:
        lines.append("No warning at the last epoch" + (", but some before." if found else ", and none before."))
    return paragraph(*lines)


def _settings(contents: Contents) -> str:
    if not contents.raw_settings:
        return missing("The settings were not recorded", "name a folder to la_core.train")
    usual = json.loads(json.dumps(asdict(Settings())))
    items = []
    for name, value in contents.raw_settings.items():
        told = escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))
        if usual.get(name) is None:
            note = "<small>for this data</small>"
        else:
            note = "" if usual.get(name) == value else f"<small>default {escape(str(usual[name]))}</small>"
        marked = ' class="changed"' if note else ""
        items.append(f"<div{marked}><dt>{escape(name)}</dt><dd>{told} {note}</dd></div>")
    return paragraph("Marked: what differs from the default, or was chosen for this data.") + (
        f'<dl class="settings">{"".join(items)}</dl>'
    )


def _accuracies(contents: Contents) -> str:
    if not contents.table:
        return missing(
            "No accuracy was recorded", "run one of the examples with a test set whose classes are known (la_core.job)"
        )
    rows = [(name, *("–" if x is None else f"{x:.1%}" for x in row)) for name, row in contents.table.items()]
    return table(("", "embedding", "layer before"), rows, "Weighted kNN accuracy on the test samples")


def _curves(contents: Contents) -> str:
    metrics = contents.metrics
    if not metrics:
        return missing("No epoch has ended yet", "look again after the first epoch")
    lines = {name: row[0] for name, row in contents.table.items() if name in ("raw pixels", "untrained encoder")}
    parts = [
        _figure(
            contents,
            "loss",
            figures.loss(metrics),
            "Loss",
            f"From {metrics[0]['loss']:.2f} to {metrics[-1]['loss']:.2f}. The two phases have different losses; the "
            "dotted line is where Local Aggregation begins.",
        )
    ]
    running = [r["knn"] for r in metrics if "knn" in r]
    if running:
        parts.append(
            _figure(
                contents,
                "accuracy",
                figures.accuracy(metrics, {k: v for k, v in lines.items() if v is not None}),
                "Running weighted kNN accuracy",
                f"From {running[0]:.1%} to {running[-1]:.1%}, against the bank.",
            )
        )
    else:
        parts.append(missing("No running accuracy", "give train classes, and set knn_every to 1 or more"))
    some = [r for r in metrics if "mean_close" in r]
    if some:
        parts.append(
            _figure(
                contents,
                "close",
                figures.close(metrics),
                "Close neighbours within the background",
                f"At the end {some[-1]['mean_close']:.1f} on average (line, left scale); "
                f"{some[-1]['without_close']:.1%} of the rows have none (dashes, right scale).",
            )
        )
    return grid(parts)


def _knn(contents: Contents) -> str:
    facts = contents.facts.get("knn")
    if not facts:
        return missing("No kNN grid was recorded", f"{RECORDER}, and train with known classes")
    values = np.array(facts["accuracy"])
    best = np.unravel_index(values.argmax(), values.shape)
    k, temperature = facts["ks"][best[0]], facts["temperatures"][best[1]]
    low, high = values.min(), values.max()

    def shade(x: float) -> str:
        return f' style="--heat:{(x - low) / max(high - low, 1e-9):.2f}"'

    head = "".join(f'<th scope="col">{t:g}</th>' for t in facts["temperatures"])
    rows = "".join(
        f'<tr><th scope="row">k = {k}</th>' + "".join(f"<td{shade(x)}>{x:.1%}</td>" for x in row) + "</tr>"
        for k, row in zip(facts["ks"], values, strict=True)
    )
    cells = (
        '<div class="scroll" tabindex="0" role="region" aria-label="kNN grid"><table class="heat">'
        f"<caption>Accuracy by k and temperature</caption><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )
    lines = _figure(
        contents,
        "knn-grid",
        figures.grid(facts["ks"], facts["temperatures"], values),
        "Accuracy over k",
        f"Highest is {values.max():.1%}, at k = {k} and temperature {temperature:g}, a choice made on these samples.",
    )
    protocol = facts["protocol"][:1].upper() + facts["protocol"][1:]
    return paragraph(escape(protocol) + ".") + grid([cells, lines])


def _densities(contents: Contents) -> str:
    phases = contents.facts.get("phases", [])
    held = [contents.arrays.get(f"density_{i}") for i in range(len(phases))]
    found = {phase: x for phase, x in zip(phases, held, strict=True) if x is not None}
    if not found:
        return missing("No densities were recorded", RECORDER)
    facts = contents.facts["density"]
    rows = [
        (phase, *(f"{x:.3f}" for x in pair.mean(axis=1)), f"{(pair[0] - pair[1]).mean():.3f}")
        for phase, pair in found.items()
    ]
    parts = []
    kinds = (
        ("local", facts["k_local"], "It rises as like things gather."),
        ("background", facts["k_background"], "It is low where the whole sphere is used."),
    )
    for i, (name, k, told) in enumerate(kinds):
        figure = figures.histogram({phase: pair[i] for phase, pair in found.items()})
        means = ", ".join(f"{phase} {pair[i].mean():.2f}" for phase, pair in found.items())
        parts.append(
            _figure(
                contents,
                f"density-{name}",
                figure,
                f"{name.capitalize()} density",
                f"Mean cosine of a bank row to its {k} nearest. {told} Means: {escape(means)}.",
            )
        )
    return (
        paragraph(f"Of {facts['samples']} bank rows, at the ends of the phases.")
        + grid(parts)
        + table(("", "local", "background", "difference"), rows, "Mean densities")
    )


def _map(contents: Contents) -> str:
    if "map_embeddings" not in contents.arrays:
        return missing("No embeddings were recorded for a map", RECORDER)
    x, classes = contents.arrays["map_embeddings"], contents.arrays["map_classes"]
    there = np.unique(classes).tolist()
    accuracy = {int(c): share for c, share in (contents.facts.get("class_accuracy") or {}).items()}
    groups: list[tuple[str, str, list[int]]] = [("map", "All classes", there)]
    if there == [-1]:
        groups = [("map", "Samples", there)]
    elif len(accuracy) > len(there) == 2 * MAP_CLASSES and all(c in accuracy for c in there):
        ranked = sorted(there, key=lambda c: -accuracy[c])
        groups = [
            ("map-best", "Classes of highest accuracy", ranked[:MAP_CLASSES]),
            ("map-worst", "Classes of lowest accuracy", ranked[MAP_CLASSES:]),
        ]
    parts = []
    for name, title, chosen in groups:
        mine = np.isin(classes, chosen)
        if mine.sum() < 2:
            continue
        placed = evaluate.mds(unit(x[mine].astype(np.float64)), min(2, int(mine.sum())))
        names = {c: "unknown class" if c < 0 else contents.class_name(c) for c in chosen}
        told = _accuracy_by_class(contents, accuracy, chosen)
        parts.append(
            _figure(
                contents,
                name,
                figures.scatter(placed.points, classes[mine], names),
                title,
                f"{mine.sum()} training samples; the two axes carry {placed.share[:2].sum():.0%} of their spread. "
                + told,
            )
        )
    return paragraph("Classical multidimensional scaling of the embeddings, by their cosines.") + grid(parts)


def _accuracy_by_class(contents: Contents, accuracy: Mapping[int, float], chosen: Iterable[int]) -> str:
    told = ", ".join(f"{contents.class_name(c)}: {accuracy[c]:.0%}" for c in chosen if c in accuracy)
    return f"Accuracy by class: {escape(told)}." if told else ""


def _galleries(contents: Contents) -> str:
    arrays = contents.arrays
    if "gallery_kind" not in arrays:
        return missing("No gallery was recorded", RECORDER)
    titles = {
        "success": ("Successes", "The most confident of the queries that their neighbours tell right, surest first."),
        "failure": (
            "Failures",
            "The least confident of the queries that their neighbours tell wrong, least sure first.",
        ),
        "sample": ("Samples", "Some queries and their nearest samples; no class says which are right."),
    }
    marks = "; a green line under a picture is the query's class, a red dashed one another"
    parts = [
        paragraph(
            f"Asked: {escape(contents.facts['queries'])}. Left the query, then its nearest training "
            f"samples, nearest first{'' if 'sample' in arrays['gallery_kind'] else marks}."
        )
    ]
    for kind, (title, told) in titles.items():
        rows = np.flatnonzero(arrays["gallery_kind"] == kind)
        if not rows.size:
            if kind == "failure" and (arrays["gallery_kind"] == "success").any():
                parts.append(f"<h3>{title}</h3>{paragraph('There is none.')}")
            continue
        if "gallery_images" in arrays:
            right = arrays["gallery_neighbour_classes"][rows] == arrays["gallery_classes"][rows, None]
            drawn = figures.gallery(
                arrays["gallery_query_images"][rows],
                arrays["gallery_images"][rows],
                None if kind == "sample" else right,
            )
            figures.save(drawn, contents.figures, f"gallery-{title.lower()}")
        items = "".join(f"<li>{_gallery_row(contents, int(row))}</li>" for row in rows)
        parts.append(f'<h3>{title}</h3>{paragraph(told)}<ol class="gallery">{items}</ol>')
    return "".join(parts)


def _gallery_row(contents: Contents, row: int) -> str:
    arrays = contents.arrays
    truth, kind = int(arrays["gallery_classes"][row]), str(arrays["gallery_kind"][row])
    theirs = arrays["gallery_neighbour_classes"][row]
    told = f"sample {arrays['gallery_queries'][row]}"
    if truth >= 0:
        told = f"<strong>{escape(contents.class_name(truth))}</strong>, {told}"
    if kind != "sample":
        guess = escape(contents.class_name(int(arrays["gallery_predicted"][row])))
        told += f": {guess} with {arrays['gallery_confidence'][row]:.0%} of the votes"
    if "gallery_images" not in arrays:
        listed = ", ".join(
            f"{i}" + (f" ({escape(contents.class_name(int(c)))})" if c >= 0 else "")
            for i, c in zip(arrays["gallery_neighbours"][row], theirs, strict=True)
        )
        return f"<p>{told}. Nearest: {listed}.</p>"
    pictures = [picture(arrays["gallery_query_images"][row], "query", "")]
    for image, c, cosine in zip(arrays["gallery_images"][row], theirs, arrays["gallery_cosines"][row], strict=True):
        name = f"class {contents.class_name(int(c))}, " if c >= 0 else ""
        mark = "" if truth < 0 or c < 0 else "right" if c == truth else "wrong"
        pictures.append(picture(image, f"{name}cosine {cosine:.2f}", mark))
    return f'<div class="row">{"".join(pictures)}</div><p>{told}</p>'


def _health(contents: Contents) -> str:
    measured = contents.measured
    if not measured:
        return missing("The health of the run was not recorded", "set health_every to 1 or more")
    found = contents.warnings()
    parts = []
    if found:
        items = "".join(
            f"<li><strong>{escape(name.capitalize())}</strong>, {_epochs(epochs)}. {escape(sentence)}</li>"
            for name, (epochs, sentence) in found.items()
        )
        parts.append(notice(f"<ul>{items}</ul>"))
    elif contents.settings is None:
        said = "".join(f"<li>At epoch {epoch}: {escape(sentence)}</li>" for epoch, sentence in contents.said())
        if said:
            parts.append(notice(f"<p>The run warned as it went.</p><ul>{said}</ul>"))
        parts.append(
            missing(
                "The settings could not be read, so nothing was checked",
                "report with the version of la-core that made the run",
            )
        )
    else:
        parts.append(paragraph("Nothing to warn of at any epoch."))
    parts.append(_health_table(measured))
    now = [r["health"] for r in measured]
    grouped = [r for r in measured if "clusters" in r["health"]]
    charts = [
        _figure(
            contents,
            "health-rank",
            figures.line(measured, {"effective rank": [h["effective_rank"] for h in now]}),
            "Effective rank",
            f"Directions that the bank uses, of {now[-1]['dim']}. It falls towards 1 in a collapse.",
        ),
        _figure(
            contents,
            "health-similarity",
            figures.line(measured, {"cosine": [h["mean_similarity"] for h in now]}, 1.0),
            "Mean similarity",
            "Mean cosine of two bank rows: near 0 when they are spread, near 1 in a collapse.",
        ),
        _figure(
            contents,
            "health-staleness",
            figures.line(measured, {"cosine": [h["staleness"]["cosine"] for h in now]}, 1.0),
            "Staleness",
            "Mean cosine of a bank row and a fresh embedding of its sample; rows are up to "
            f"{now[-1]['staleness']['age_max']} steps old.",
        ),
    ]
    if grouped:
        now = [r["health"] for r in grouped]
        within, between = ([health.above_chance(h, which) for h in now] for which in ("within", "between"))
        series = {"within a round": within, "between rounds": between}
        charts += [
            _figure(
                contents,
                "health-clusters",
                figures.band(grouped, [h["clusters"]["quantiles"] for h in now], health.PER_CLUSTER),
                "Samples in a cluster",
                f"{now[-1]['clusters']['n']} clusters in all clusterings of a round, "
                f"{now[-1]['clusters']['empty']} empty at the end.",
            ),
            _figure(
                contents,
                "health-close",
                figures.band(grouped, [h["close"]["quantiles"] for h in now]),
                "Size of C over the whole bank",
                f"{now[-1]['close']['in_background']:.0%} of C lies within the background at the end.",
            ),
        ]
        known = {name: values for name, values in series.items() if any(v is not None for v in values)}
        if known:
            charts.append(
                _figure(
                    contents,
                    "health-agreement",
                    figures.line(grouped, known, 1.0),
                    "Agreement of clusterings",
                    "Mutual information above chance: 0 for unrelated clusterings, 1 for equal ones.",
                )
            )
    return "".join(parts) + grid(charts)


def _health_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """The first epoch, the last of each phase, and the last of all."""
    ends = [a for a, b in zip(measured, [*measured[1:], None], strict=True) if b is None or a["phase"] != b["phase"]]
    chosen = {r["epoch"]: r for r in (measured[0], *ends)}.values()
    lines: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "effective rank": lambda h: f"{h['effective_rank']:.1f} of {min(h['dim'], h['rows'])}",
        "mean similarity": lambda h: f"{h['mean_similarity']:.3f}",
        "bank row against fresh embedding": lambda h: f"{h['staleness']['cosine']:.3f}",
        "samples in a cluster, median": lambda h: f"{h['clusters']['quantiles'][2]:g}",
        "largest cluster": lambda h: f"{h['clusters']['quantiles'][4]:g}",
        "empty clusters": lambda h: f"{h['clusters']['empty']} of {h['clusters']['n']}",
        "size of C, median": lambda h: f"{h['close']['quantiles'][2]:g}",
        "share of C within B": lambda h: f"{h['close']['in_background']:.1%}",
        "agreement within a round": lambda h: f"{health.above_chance(h, 'within'):.2f}",
        "agreement between rounds": lambda h: f"{health.above_chance(h, 'between'):.2f}",
    }
    rows = []
    for name, tell in lines.items():
        cells = []
        for record in chosen:
            try:
                cells.append(tell(record["health"]))
            except (KeyError, TypeError):  # not measured in this phase
                cells.append("–")
        rows.append((name, *cells))
    heads = [f"epoch {r['epoch']}<br><small>{escape(r['phase'])}</small>" for r in chosen]
    return table(("", *heads), rows, "Health at the ends of the phases", markup=True)


SECTIONS: dict[str, tuple[str, Callable[[Contents], str]]] = {
    "accuracy": ("Accuracy", _accuracies),
    "curves": ("Curves", _curves),
    "knn": ("kNN grid", _knn),
    "densities": ("Densities", _densities),
    "map": ("Map", _map),
    "galleries": ("Galleries", _galleries),
    "health": ("Health", _health),
    "settings": ("Settings", _settings),
}


def _figure(contents: Contents, name: str, figure: Any, title: str, caption: str) -> str:
    """Draw a chart into the page, and as files."""
    return chart(figures.save(figure, contents.figures, name), name, title, caption)


def _epochs(epochs: Sequence[int]) -> str:
    first, last = epochs[0], epochs[-1]
    return f"at epoch {first}" if first == last else f"at {len(epochs)} epochs from {first} to {last}"
