"""The main job of the examples, the same for every framework: read the options and the data, run, show a table.

An example supplies its name and its encoders; everything else is here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from la_core import check, digits, evaluate
from la_core.bank import unit
from la_core.comm import Team
from la_core.data import ImageFolder, Samples, load, load_npz, samples
from la_core.dryrun import Cost, plan
from la_core.errors import DataError, LaCoreError, SettingsError, Terminated
from la_core.folder import CHECKPOINTS, whole
from la_core.layout import LAYOUTS
from la_core.neighbours import nearest
from la_core.presets import Preset, preset, presets, small
from la_core.protocol import Backend, Encoder, backend
from la_core.randomness import generator
from la_core.report import Recorder, curves, neighbours, report
from la_core.run import Callback, Run
from la_core.settings import Settings
from la_core.train import train
from la_core.views import ImageView


@dataclass(frozen=True)
class Recipe:
    """An encoder, with what suits it on the digits."""

    make_encoder: Callable[[Backend, Settings, tuple[int, ...]], Encoder]
    """From the backend, the settings and the shape of a view (C, H, W)."""
    settings: Settings = digits.SETTINGS
    view: ImageView = digits.VIEW


@dataclass(frozen=True)
class Networks:
    """What a framework makes presets of (:mod:`la_core.presets`)."""

    make: Callable[..., Any]
    """``make(name, **options)``: a network."""
    encoder: Callable[[Any, Backend, Settings], Encoder]
    """Of a network."""
    cost: Callable[[Callable[[], Any], tuple[int, ...]], Cost]
    """Of a network that the function would make, for a view of that shape."""

    def made(self, of: Preset, shape: tuple[int, ...]) -> Any:
        """A preset's network for views (C, H, W)."""
        return self.make(of.network, **{**of.options, "channels": shape[0]})


TEST_SHARE = 0.2
PIXELS = 2**30
"""Bytes that the pixels of all samples may take, for one row of the table and half of the gallery."""
IMAGENET = 1_281_167
"""Training images of ImageNet."""


def main(
    framework: str,
    encoders: Mapping[str, Recipe],
    argv: Sequence[str] | None = None,
    networks: Networks | None = None,
    devices: bool = False,
) -> int:
    """Run the job from the command line. The first encoder is the default. Returns the exit status.

    ``devices`` says that the framework's backend takes several devices: the job then has an option for it.
    """
    options = _parser(framework, encoders, networks, devices).parse_args(argv)
    keep_freed_memory()
    try:
        if networks and options.dry_run:
            _dry_run(options, networks)
        else:
            _Job(framework, encoders[options.encoder], options, networks).run()
    except LaCoreError as error:
        broken = options.data and not options.skip_broken and "cannot be read" in str(error)
        hint = " (--skip-broken leaves such files out)" if broken and Path(options.data).is_dir() else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {_left(options)}", file=sys.stderr)
        return 130
    except Terminated:
        print(f"terminated; {_left(options)}", file=sys.stderr)
        return 143
    return 0


def _left(options: argparse.Namespace) -> str:
    """What a run that ends early leaves, in words."""
    folder = None if options.out is None else Path(options.out)
    if folder is None or not (folder / "encoder.npz").exists():
        return "nothing had been learnt yet"
    if not any((folder / CHECKPOINTS).glob("epoch-*")):
        return f"what was learnt so far is in {folder}, without a checkpoint to go on from"
    return f"what was learnt so far is in {folder}; the same command goes on with --resume --out {folder}"


def keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next, where it is one that can be told so.

    By itself glibc gives large blocks back at once, and each step pays the system for all of its activations anew. It
    is the program that may say so, and not a library in it.
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if tell is not None:
        for threshold in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            tell(threshold, 2**30)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of <malloc.h>."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults, but for those that the help itself tells: None, and that of a switch."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is None or isinstance(action.default, bool)
        return action.help if told else super()._get_help_string(action)


def _parser(
    framework: str, encoders: Mapping[str, Recipe], networks: Networks | None, devices: bool
) -> argparse.ArgumentParser:
    first = next(iter(encoders))
    parser = argparse.ArgumentParser(
        description=f"Local Aggregation of images with {framework}. Without options: handwritten digits, each "
        "somewhere on a larger canvas; prints how well the nearest neighbours of an image tell its class.",
        formatter_class=_Help,
    )
    add = parser.add_argument
    add("--data", metavar="PATH", help="a folder of images (first-level subfolders are classes), or an .npz with "
        "'images' (N, H, W[, C]) uint8 and, if there are any, 'labels', 'test_images', 'test_labels'; "
        "by default the digits")  # fmt: skip
    add("--size", type=int, help="side in pixels to which images of --data are resized; by default 64"
        + (", or the preset's" if networks else ""))  # fmt: skip
    add("--encoder", choices=sorted(encoders), default=first, help="network to train from nothing")
    add("--epochs", type=int, help="epochs in all, the warm-up included; by default the recipe's")
    add("--warmup-epochs", type=int, help="epochs of Instance Discrimination; by default the recipe's share of all")
    add("--device", help="device in the framework's own words, such as cpu or cuda:0")
    add("--seed", type=int, default=0, help="the one seed of the run")
    add("--out", metavar="FOLDER", help="a new folder for the run; by default the next free one under runs/")
    add("--resume", nargs="?", const="auto", default="never", choices=("auto", "must", "never"),
        help="go on with the run in --out; begin it where there is none, unless must is said")  # fmt: skip
    add("--checkpoint-every", type=int, default=1, metavar="N", help="so many units between checkpoints; 0 for none")
    add("--checkpoint-unit", choices=("epochs", "steps"), default="epochs", help="of --checkpoint-every")
    add("--bank-layout", choices=LAYOUTS, default=LAYOUTS[0],
        help="of several processes, as torchrun starts them, or devices: whole in each, or its rows dealt out"
    )  # fmt: skip
    if devices:
        add(
            "--devices",
            type=int,
            default=1,
            metavar="N",
            help="so many make the run together; also a CPU may be several",
        )
    add("--workers", type=int, default=0, metavar="N", help="processes that load images ahead")
    add("--skip-broken", action="store_true", help="leave out files of --data that cannot be read, and name them")
    add("--quick", action="store_true", help="a twentieth of the epochs, to see that everything runs")
    if networks:
        add("--preset", choices=list(presets), help="network, settings and views for --data, instead of --encoder")
        add("--dry-run", action="store_true", help="say what the --preset would take, and start nothing")
        add("--samples", type=int, help="training samples of a dry run without --data; by default ImageNet's 1281167")
    return parser


def _dry_run(options: argparse.Namespace, networks: Networks) -> None:
    if options.preset is None:
        raise SettingsError("--dry-run needs a --preset")
    n = IMAGENET if options.samples is None else check.count("--samples", options.samples)
    data = _own(options)[0] if options.data else None
    recipe = preset(options.preset, n if data is None else len(data))
    view = recipe.view if options.size is None else replace(recipe.view, size=options.size)
    shape = (3, view.size, view.size) if data is None else load(data, [0], view, None).shape[1:]
    cost = networks.cost(lambda: networks.made(recipe, shape), shape)
    print(f"{options.preset}: {recipe.description}\n")
    print(plan(_asked(options, recipe.settings), n if data is None else len(data), cost))


def _asked(options: argparse.Namespace, recipe: Settings) -> Settings:
    """A recipe's settings with what the options say."""
    epochs = recipe.epochs if options.epochs is None else options.epochs
    epochs = max(2, epochs // 20) if options.quick else epochs
    warmup = options.warmup_epochs
    if warmup is None:
        warmup = round(epochs * recipe.warmup_epochs / recipe.epochs)
    return replace(recipe, seed=options.seed, epochs=epochs, warmup_epochs=warmup)


@dataclass
class _Job:
    framework: str
    recipe: Recipe
    options: argparse.Namespace
    networks: Networks | None = None

    def run(self) -> None:
        options = self.options
        check.count("--seed", options.seed, least=0)
        several = getattr(options, "devices", 1)
        library = backend(self.framework, options.device, **({"devices": several} if several != 1 else {}))
        team = Team(library)
        say = print if team.first else _quiet
        own = options.data is not None
        if options.resume != "never" and not options.out:
            raise SettingsError("--resume needs the folder of the run: give it with --out")
        named = getattr(options, "preset", None)
        if named and not own:
            raise SettingsError("a --preset is for your own images: give their folder with --data")
        _need("PIL", "matplotlib", *([] if own else ["sklearn"]))
        view = self.recipe.view
        if own:
            view = presets[named](IMAGENET).view if named else ImageView(size=64)
            view = view if options.size is None else replace(view, size=options.size)
        train_set, test_set = _own(options) if own else digits.placed_digits()
        if named:
            self.recipe = self._preset(named, len(train_set))
        settings = self._settings(len(train_set)).resolved(len(train_set))
        free = _free_folder(f"{named or options.encoder}-{self.framework}")
        options.out = Path(options.out or team.told(str(free).encode() if team.first else None).decode())
        shape = load(train_set, [0], view, None).shape[1:]

        say(f"{len(train_set)} training samples, {0 if test_set is None else len(test_set)} test samples")
        say(f"{named or options.encoder} on {self.framework}, views {shape}, run folder {options.out}")
        if not team.alone:
            say(f"{team.comm.size} processes, bank {options.bank_layout}")
        if several != 1:
            say(f"{several} devices, bank {options.bank_layout}")
        say(settings, flush=True)
        encoder = self.recipe.make_encoder(library, settings, shape)
        table = _Table(train_set, test_set, view, settings, options.out / "table.json")
        run = train(
            train_set,
            encoder,
            backend=library,
            settings=settings,
            view=view,
            test=test_set,
            folder=options.out,
            callbacks=[table, Recorder(options.out, train_set.class_names)],
            workers=options.workers,
            resume=options.resume,
            checkpoint_every=options.checkpoint_every,
            checkpoint_unit=options.checkpoint_unit,
            bank_layout=options.bank_layout,
        )
        shown = _gallery(run, table) if table.rows else None
        if team.first:
            self._show(run, table, shown)
        if not team.alone:  # torchrun ends all when one of them fails: nobody leaves while the first still draws
            team.told(b"" if team.first else None)

    def _show(self, run: Run, table: _Table, shown: tuple[Any, ...] | None) -> None:
        """Print the table, and draw what goes with it."""
        options = self.options
        if table.rows:
            print(f"\n{table}\n")
            if self.options.quick:
                print("quick: everything ran, in too few epochs to learn from; leave --quick out to see what it learns")
            (options.out / "table.txt").write_text(f"{table}\n")
            if shown is not None:
                neighbours(options.out / "neighbours.png", *shown)
        else:
            print("\nthe classes are not known, so there is no accuracy to show")
        lines = {name: row[0] for name, row in table.rows.items() if row[0] is not None and name in table.baselines}
        curves(options.out, lines)
        print(f"settings, metrics, embeddings, weights and pictures are in {options.out}")
        print(f"the report, for any browser: {report(options.out)}")

    def _preset(self, name: str, n: int) -> Recipe:
        assert self.networks is not None
        networks, chosen = self.networks, preset(name, n)

        def make(library: Backend, settings: Settings, shape: tuple[int, ...]) -> Encoder:
            return networks.encoder(networks.made(chosen, shape), library, settings)

        return Recipe(make, chosen.settings, chosen.view)

    def _settings(self, n: int) -> Settings:
        options, recipe = self.options, self.recipe.settings
        if options.data is not None and not getattr(options, "preset", None):
            sized = small(n)  # the recipe's numbers are those of the digits
            names = "epochs", "warmup_epochs", "n_background", "n_clusters"
            recipe = replace(recipe, knn_k=None, **{name: getattr(sized, name) for name in names})
        return _asked(options, recipe)


class _Table(Callback):
    """Weighted-kNN accuracy on the test samples: raw pixels, then the encoder before, between and after."""

    baselines = ("raw pixels", "untrained encoder")

    def __init__(self, data: Samples, test: Samples | None, view: ImageView, settings: Settings, file: Path) -> None:
        self.data, self.test, self.view, self.settings, self.file = data, test, view, settings, file
        self.known = test is not None and test.classes is not None and data.classes is not None
        self.rows: dict[str, tuple[float | None, float | None]] = {}
        """Accuracy of the embedding and of the layer before it, by name."""

    def pixels(self, data: Samples, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Evaluation views as one sees them, in [0, 1], of all or of some: (N, H, W, C)."""
        plain = replace(self.view, mean=(0.0,), std=(1.0,))
        return load(data, range(len(data)) if indices is None else indices, plain, None).transpose(0, 2, 3, 1)

    @property
    def holds_pixels(self) -> bool:
        """Whether memory is likely to hold those of all samples."""
        one = self.pixels(self.data, [0]).nbytes
        return one * (len(self.data) + (0 if self.test is None else len(self.test))) <= PIXELS

    def accuracy(self, rows: np.ndarray, queries: np.ndarray) -> float:
        """On the host, by the protocol of the settings."""
        assert self.test is not None
        assert self.settings.knn_k is not None
        predicted = evaluate.knn(
            rows.reshape(len(rows), -1),
            self.data.classes,
            queries.reshape(len(queries), -1),
            k=self.settings.knn_k,
            temperature=self.settings.knn_temperature,
        )
        return float((predicted == self.test.classes).mean())

    def on_start(self, run: Run) -> None:
        """The two rows that nothing was learnt for."""
        if self.known and self.test is not None:
            if self.holds_pixels:
                self.rows["raw pixels"] = (self.accuracy(self.pixels(self.data), self.pixels(self.test)), None)
            elif run.team.first:
                print(f"no row for raw pixels, which would take more than {PIXELS >> 20} MB", flush=True)
            self._add("untrained encoder", run)

    def on_resume(self, run: Run) -> None:
        """The rows of before."""
        if self.known and self.file.is_file():
            self.rows = {name: (row[0], row[1]) for name, row in json.loads(self.file.read_text()).items()}

    def on_phase_end(self, run: Run) -> None:
        """One more row."""
        if self.known:
            self._add(f"after {run.phase}", run)

    def _add(self, name: str, run: Run) -> None:
        here, there = run.embed(), run.embed(self.test)
        self.rows[name] = (
            self.accuracy(here.embeddings, there.embeddings),
            self.accuracy(here.features, there.features),
        )
        if not run.team.first:
            return
        whole(self.file, lambda file: file.write_text(json.dumps(self.rows, indent=2) + "\n"))

    def __str__(self) -> str:
        s = self.settings
        test = 0 if self.test is None else len(self.test)
        lines = [
            f"weighted kNN accuracy, k = {s.knn_k}, temperature {s.knn_temperature}: {test} test samples against "
            f"{len(self.data)} training samples,",
            "both embedded by the encoder as it stands, from evaluation views",
            "",
            f"{'':<26}{'embedding':>12}{'layer before':>15}",
        ]
        for name, (embedding, features) in self.rows.items():
            before = "-" if features is None else f"{features:.1%}"
            lines.append(f"{name:<26}{embedding:>12.1%}{before:>15}")
        return "\n".join(lines)


def _need(*packages: str) -> None:
    """Ask for what the job uses beside la_core's own dependencies before it starts, not when it ends."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise DataError(f"the job needs {', '.join(missing)}, not installed: pip install 'la-core[demo]'")


def _own(options: argparse.Namespace) -> tuple[Samples, Samples | None]:
    """The user's images; where classes are known and no test set comes with them, a part is held out."""
    path, test = Path(options.data), None
    if path.suffix.lower() == ".npz":
        data, test = load_npz(path)
    elif path.suffix.lower() == ".npy":
        data = samples(path)
    else:
        on_error = "skip" if options.skip_broken else "raise"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            data = samples(ImageFolder(path, on_error=on_error, workers=options.workers))
        for warning in said:
            print(f"warning: {warning.message}", file=sys.stderr)
    if data[0].dtype != np.uint8:
        raise DataError(f"{path} holds features, not images: give them to la_core.train, with a FeatureView")
    n_test = round(TEST_SHARE * len(data))
    if test is None and data.classes is not None and n_test:
        order = generator(options.seed, "split").permutation(len(data))
        data, test = data.part(order[n_test:]), data.part(order[:n_test])
    return data, test


def _quiet(*words: object, flush: bool = False) -> None:
    """What all but the first process print."""


def _gallery(run: Run, table: _Table) -> tuple[Any, ...] | None:
    """Test samples with their nearest training samples, by pixels and by embedding: what ``neighbours`` draws."""
    if run.test is None or run.test.classes is None or run.data.classes is None:
        return None
    # The first test sample of each class, as far as there is room.
    chosen = np.unique(run.test.classes, return_index=True)[1][:10]
    queries = table.pixels(run.test, chosen)
    compared = {"raw pixels": (table.pixels(run.data), queries)} if table.holds_pixels else {}
    compared["Local Aggregation"] = run.embed().embeddings, run.embed(run.test).embeddings[chosen]
    nearest_rows = {
        name: nearest(unit(asked.reshape(len(asked), -1)), unit(rows.reshape(len(rows), -1)), min(7, len(rows)))[1]
        for name, (rows, asked) in compared.items()
    }
    shown = np.unique(np.concatenate([rows.reshape(-1) for rows in nearest_rows.values()]))
    found = {
        name: (np.searchsorted(shown, rows), run.data.classes[rows] == run.test.classes[chosen, None])
        for name, rows in nearest_rows.items()
    }
    return table.pixels(run.data, shown), queries, found


def _free_folder(name: str) -> Path:
    number = 1
    while (path := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return path
