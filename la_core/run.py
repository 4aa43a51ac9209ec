"""A run as it stands, and who is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from la_core import evaluate
from la_core.bank import State
from la_core.comm import Team
from la_core.data import Samples, Workers
from la_core.errors import NotFiniteError
from la_core.protocol import Backend, Encoder
from la_core.settings import Settings
from la_core.views import View

WARM_UP, AGGREGATION = "warm-up", "local aggregation"


@dataclass
class Run:
    """A run as it stands; what :func:`train` returns and what callbacks see."""

    data: Samples
    test: Samples | None
    view: View
    """Training reads it once, when it begins."""
    encoder: Encoder
    backend: Backend
    settings: Settings
    state: State
    """Bank and labels, on the backend."""
    epoch: int = 0
    step: int = 0
    phase: str = WARM_UP
    status: str = "running"
    last_batch: int = 0
    """Size of the batch that was just learnt."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record for each epoch, as in ``metrics.jsonl``."""
    workers: Workers = field(default_factory=Workers)
    """Who loads batches: by default this process."""
    team: Team = field(init=False)
    """The processes of the run; ``run.team.first`` in the one that writes files."""

    def __post_init__(self) -> None:
        self.team = Team(self.backend)

    def embed(self, data: Samples | None = None) -> evaluate.Embedded:
        """Embeddings and features of the evaluation views of ``data``, by default of the training samples.

        Each process embeds its part; all have the whole, and so all must ask for it.
        """
        source = self.data if data is None else data
        settings, n = self.settings, len(source)
        mine = evaluate.embed(
            *(self.encoder, self.backend, source, self.view, settings.batch_size, settings.dtype),
            workers=self.workers,
            indices=None if self.team.alone else np.arange(n)[self.team.own(n)],
        )
        return evaluate.Embedded(*(self.team.joined_on_host(x, n) for x in mine))


class Callback:
    """What a run calls as it goes. Override what you need; to stop a run, raise ``KeyboardInterrupt``.

    Of a run of several processes each calls its own; one that writes a file should do so where ``run.team.first``.
    """

    def on_start(self, run: Run) -> None:
        """The bank is filled; no step has been made."""

    def on_resume(self, run: Run) -> None:
        """In place of :meth:`on_start`, where a run goes on from a checkpoint: what came after that comes again."""

    def on_step(self, run: Run, loss: float) -> None:
        """A batch was learnt and its bank rows were updated."""

    def on_skip(self, run: Run, error: NotFiniteError) -> None:
        """In place of :meth:`on_step`: the step was held back, by ``on_not_finite="skip"``."""

    def on_epoch(self, run: Run, record: dict[str, Any]) -> None:
        """An epoch ended; ``record`` is the line of metrics."""

    def on_phase_end(self, run: Run) -> None:
        """``run.phase`` ended: the warm-up, or Local Aggregation."""

    def on_end(self, run: Run) -> None:
        """The run is over, in whatever way: see ``run.status``."""
