"""Chooses candidates with optuna, which also keeps what they scored."""

from __future__ import annotations

import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError, SourceError
from mergekit_lite.recipe.schema import Objective
from mergekit_lite.recipe.searched import Searched
from mergekit_lite.search.scorer import loss
from mergekit_lite.search.task import value_of
from mergekit_lite.search.trials import Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

METHODS = ("tpe", "cmaes", "nsga2", "random")
"""Ways of choosing the next candidate."""
_DIGEST = "mergekit_lite.search"
Candidate = Callable[[dict[str, Any]], Iterator[tuple[float, ...]]]


@dataclass(frozen=True)
class Strategy:
    """How candidates are chosen.

    Attributes:
        method: one of `METHODS`.
        trials: candidates in all, those of earlier calls with the same storage counted.
        timeout: seconds after which no further candidate is begun.
        seed: of the choice.
        storage: a file, or the URL of a database; None keeps nothing.
        name: of the study in its storage.
        prune: leave candidates on the way that are worse than most.
    """

    method: str = "tpe"
    trials: int = 40
    timeout: float | None = None
    seed: int = 0
    storage: str | None = None
    name: str = "search"
    prune: bool = True

    @property
    def many(self) -> bool:
        """Whether objectives are kept apart."""
        return self.method == "nsga2"


def require_optuna() -> None:
    """Check that optuna is installed.

    Raises:
        SourceError: it is not; tells how to install it.
    """
    if importlib.util.find_spec("optuna") is None:
        hint = 'install it with `pip install "mergekit-lite[search]"`'
        raise SourceError("searching needs the package optuna", "search", hint)


class Search:
    """One study: candidates that were scored, and the next one.

    Args:
        parameters: that are chosen.
        objectives: by which.
        strategy: how.
        digest: of everything that scores depend on; a storage that holds another is refused.

    Raises:
        RecipeError: the storage is of another search, or the method does not fit the parameters.
        SourceError: optuna is missing, or the storage cannot be opened.
    """

    def __init__(
        self,
        parameters: Sequence[Searched],
        objectives: Sequence[Objective],
        strategy: Strategy,
        digest: str,
    ) -> None:
        require_optuna()
        self.parameters, self.objectives, self.strategy = parameters, objectives, strategy
        _require_method(parameters, objectives, strategy)
        with quiet():
            self._study = _study(strategy, len(objectives) if strategy.many else 1)
            _require_same(self._study, strategy, digest)

    def run(
        self, candidate: Candidate, start: dict[str, Any], tell: Callable[[Trial], object]
    ) -> None:
        """Score candidates until there are enough.

        Args:
            candidate: scores one over ever more of the data.
            start: values of the first one.
            tell: called with every candidate that was scored.

        Raises:
            DataError: no candidate can be merged and scored.
        """
        began = time.monotonic()
        with quiet():
            if not self.trials():
                self._study.enqueue_trial(_as_asked(self.parameters, start))
            while len(self.trials()) < self.strategy.trials:
                timeout = self.strategy.timeout
                if timeout is not None and time.monotonic() - began >= timeout and self.trials():
                    break
                tell(self._next(candidate))

    def trials(self) -> list[Trial]:
        """Return all candidates that were scored, left or refused, in order."""
        with quiet():
            found = (self._told(each) for each in self._study.get_trials(deepcopy=False))
            return [trial for trial in found if trial is not None]

    def once(self, key: str) -> bool:
        """Return whether something is done for the first time, and note that it is done."""
        with quiet():
            first = key not in self._study.user_attrs
            self._study.set_user_attr(key, True)
        return first

    def _next(self, candidate: Candidate) -> Trial:
        from optuna.trial import TrialState

        # A sampler of its own for each candidate, so that an interrupted search goes on as it
        # would have gone on.
        self._study.sampler = _sampler(self.strategy, len(self.trials()))
        trial = self._study.ask()
        values = {p.name: _suggested(trial, p) for p in self.parameters}
        known = next((t for t in self.trials() if t.values == values and t.scores), None)
        try:
            if known is not None:
                scores, pruned = known.scores, known.state == "pruned"
            else:
                scores, pruned = self._score(trial, candidate, values)
        except MergekitLiteError as error:
            trial.set_user_attr("error", error.problems[0].what)
            self._study.tell(trial, state=TrialState.FAIL)
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            trial.set_user_attr("scores", list(scores))
            if pruned:
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, self._losses(scores))
        found = self._told(self._study.get_trials(deepcopy=False)[trial.number])
        if found is None:
            raise RuntimeError("a candidate that was scored is not in the study")
        return found

    def _score(
        self, trial: OptunaTrial, candidate: Candidate, values: dict[str, Any]
    ) -> tuple[tuple[float, ...], bool]:
        scores: tuple[float, ...] = ()
        for step, scores in enumerate(candidate(values)):
            if not all(map(math.isfinite, scores)):
                raise DataError("a score is not finite")
            if self.strategy.prune and not self.strategy.many:
                trial.report(loss(self.objectives, scores), step)
                if trial.should_prune():
                    return scores, True
        return scores, False

    def _losses(self, scores: Sequence[float]) -> list[float]:
        if not self.strategy.many:
            return [loss(self.objectives, scores)]
        pairs = zip(self.objectives, scores, strict=True)
        return [loss([objective], [score]) for objective, score in pairs]

    def _told(self, each: FrozenTrial) -> Trial | None:
        state = each.state.name.lower()
        error = str(each.user_attrs.get("error", ""))
        if state not in ("complete", "pruned") and not error:
            return None
        values = {p.name: _plain(p, each.params[p.name]) for p in self.parameters}
        scores = tuple(each.user_attrs.get("scores", ()))
        if error:
            return Trial(each.number, values, (), math.inf, "failed", error)
        return Trial(each.number, values, scores, loss(self.objectives, scores), state)


def _study(strategy: Strategy, objectives: int) -> Study:
    import optuna

    try:
        return optuna.create_study(
            storage=_storage(strategy.storage),
            study_name=strategy.name,
            load_if_exists=True,
            directions=["minimize"] * objectives,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
        )
    except MergekitLiteError:
        raise
    except Exception as error:  # of whatever database it is
        what = f"the storage cannot be used: {str(error).splitlines()[0]}"
        hint = "give a file, or a URL such as sqlite:///search.db"
        raise SourceError(what, strategy.storage or "--storage", hint) from error


def _storage(where: str | None) -> BaseStorage | str | None:
    if where is None or "://" in where:
        return where
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(where).expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "it is a folder" if path.is_dir() else "its folder does not exist"
        raise SourceError(f"the storage cannot be used: {what}", where, "name a file to make")
    return JournalStorage(JournalFileBackend(str(path)))


def _require_same(study: Study, strategy: Strategy, digest: str) -> None:
    there = study.user_attrs.get(_DIGEST)
    if there is None and not study.trials:
        study.set_user_attr(_DIGEST, digest)
    elif there != digest:
        raise RecipeError(
            f"`{strategy.name}` in this storage is of another recipe, other data, models or"
            " objectives",
            strategy.storage or "--storage",
            "name another file, or another --study in it",
        )


def _require_method(
    parameters: Sequence[Searched], objectives: Sequence[Objective], strategy: Strategy
) -> None:
    choice = next((p for p in parameters if p.choices), None)
    if strategy.method == "cmaes" and choice is not None:
        what = f"CMA-ES searches numbers, and `{choice.name}` is a choice"
        raise RecipeError(what, str(choice.where), "take `--method tpe`")
    if strategy.method == "cmaes" and len(parameters) < 2:
        what = "CMA-ES searches several numbers together, and there is one"
        raise RecipeError(what, str(parameters[0].where), "take `--method tpe`")
    if strategy.many and len(objectives) < 2:
        what = "NSGA-II weighs objectives against one another, and there is one"
        raise RecipeError(what, objectives[0].where, "take `--method tpe`, or add an objective")


def _sampler(strategy: Strategy, number: int) -> BaseSampler:
    from optuna import samplers

    seed = (strategy.seed * 1_000_003 + number) % (1 << 32)
    if strategy.method == "cmaes":
        return samplers.CmaEsSampler(seed=seed, n_startup_trials=4)
    if strategy.method == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=10)
    if strategy.method == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True)


def _suggested(trial: OptunaTrial, parameter: Searched) -> Any:
    if parameter.choices:
        return _plain(parameter, trial.suggest_categorical(parameter.name, parameter.labels))
    low, high = parameter.low, parameter.high
    found = trial.suggest_float(parameter.name, low, high, log=parameter.log, step=parameter.step)
    return _plain(parameter, found)


def _plain(parameter: Searched, found: Any) -> Any:
    """Return what stands in a recipe for what optuna keeps."""
    if parameter.choices:
        return parameter.choices[parameter.labels.index(found)]
    return value_of(parameter, float(found))


def _as_asked(parameters: Sequence[Searched], values: dict[str, Any]) -> dict[str, Any]:
    from mergekit_lite.recipe.marks import show

    return {p.name: show(values[p.name]) if p.choices else values[p.name] for p in parameters}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep optuna from talking: what it would say is said here."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
