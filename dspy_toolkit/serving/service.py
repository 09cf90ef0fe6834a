"""What answers, without HTTP: programs by name, with what they fall back on.

    service = Service(settings)
    await service.start()
    reply = await service.predict("router", {"request": "…"})
    await service.stop()

Covered: which program a name stands for, asking it, falling back, ensembles, challengers, remembering answers for feedback.
Not covered: how a request arrives (`routes`), how many there are at once (`admission`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import RegistryError, SettingsError, ToolkitError
from dspy_toolkit.lm.litellm.provider import find_engine
from dspy_toolkit.lm.models.weights import PREFIX
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.project.abstention import marked
from dspy_toolkit.sections import EnsembleTable
from dspy_toolkit.serving.challengers import Challengers
from dspy_toolkit.serving.ensembles import Vote, agreement, combine
from dspy_toolkit.serving.fallback import FallBack, Move, Option
from dspy_toolkit.serving.problems import Problem, in_words, problem_of
from dspy_toolkit.serving.programs import Live, load_live
from dspy_toolkit.serving.remembered import Remembered, Served
from dspy_toolkit.serving.replies import Ask, Reply
from dspy_toolkit.serving.running import Answer, run
from dspy_toolkit.serving.streaming import FieldStream
from dspy_toolkit.serving.traces import Tracer
from dspy_toolkit.serving.watching import Entry, Standing, Watcher, stand

if TYPE_CHECKING:
    from dspy_toolkit.serving.measures import Measures
    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

VERSIONS = 16
"""Versions asked for by their number that stay loaded."""
MEMBERS_SHARE = 0.9
"""Of the time that is left, for the members of an ensemble: one that hangs does not take the others' answers with it."""


class Service:
    """Programs that answer. Made on any thread, used on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.entries: dict[str, Entry] = {}
        self.remembered = Remembered(settings.serving.remember_requests)
        serving = settings.serving
        self.fallback = FallBack(
            serving.breaker_failures,
            serving.breaker_seconds,
            serving.fall_back_share,
            patience=serving.deadline_seconds * (1 - serving.fall_back_share) * 0.5,
        )
        self.measures: Measures | None = None
        self.tracer = Tracer(settings)
        self.challengers = Challengers(settings)
        self.ready = False
        self.models: dict[str, str] = {}
        """Of the local models that programs run on: `loading`, `loaded`, or `not loaded`, of which the log says why."""
        self.watcher = Watcher(settings, lambda: list(self.entries.values()), self._told)
        self._threads = ThreadPoolExecutor(serving.threads, thread_name_prefix="serving program")
        self._versions: OrderedDict[str, Live] = OrderedDict()
        self._loading = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._random = random.Random()

    # Starting and stopping

    async def start(self) -> None:
        """Load what is to be served, follow the registry, and begin to load the models, each once.

        Raises:
            ToolkitError: a program cannot be loaded, or there is nothing to serve.
        """
        if not self.entries:
            await asyncio.to_thread(self.load)
        self.watcher.start()
        self.ready = True
        for model in {entry.standing.live.model for entry in self.entries.values()}:
            if model.startswith(PREFIX):
                self.models[model] = "loading"
                self._keep(asyncio.ensure_future(self._load_model(model)))

    async def _load_model(self, model: str) -> None:
        try:
            await asyncio.wrap_future(find_engine(model).load())
        except ToolkitError as error:  # the first request tries again, and falls back as it would have
            self.models[model] = "not loaded"
            log.warning("%s is not loaded ahead of its first request: %s", model, error)
        else:
            self.models[model] = "loaded"

    def load(self) -> None:
        """Load every served program, in this thread."""
        settings = self.settings
        for reference in settings.serving.programs or _champions(settings):
            self._add(reference)
        for name, table in settings.serving.ensembles.items():
            if name in self.entries:
                raise SettingsError(f"[serving.ensembles.{name}] has the name of a program. Give it another one.")
            self._check_ensemble(name, table)
        for name in settings.serving.challengers:
            if name not in self.entries:
                raise SettingsError(f"[serving.challengers.{name}]: no such program is served. Serve it, or remove it.")
        self.tracer.open()

    def _add(self, reference: str) -> Entry:
        from dspy_toolkit.registry import load_version
        from dspy_toolkit.registry.references import is_location, is_saved, is_version, project_name

        saved, pinned = is_saved(reference), is_version(reference) and not reference.endswith("@champion")
        location = reference if is_location(reference) and not saved else ""
        if saved:
            name = load_version(self.settings, reference)[1].project
        else:
            name = reference if pinned else project_name(reference.removesuffix("@champion"))
        standing = stand(self.settings, reference, location, name)
        entry = Entry(name, reference, location, not pinned and not saved, standing)
        self.entries[name] = entry
        return entry

    def _check_ensemble(self, name: str, table: EnsembleTable) -> None:
        lives = [self._load_member(member) for member in table.members]
        first = lives[0].fields.input_names
        for live in lives[1:]:
            if set(live.fields.input_names) != set(first):
                raise SettingsError(
                    f"[serving.ensembles.{name}]: {live} takes {', '.join(live.fields.input_names)}, and {lives[0]} takes "
                    f"{', '.join(first)}. Members must take the same inputs."
                )

    def _load_member(self, member: str) -> Live:
        if member not in self.entries:
            self._add(member)
        return self.entries[member].standing.live

    async def stop(self) -> None:
        """Stop following the registry and finish what goes on beside requests."""
        self.ready = False
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.to_thread(self.watcher.stop)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.tracer.close)

    def _told(self, name: str, what: str) -> None:
        if self.measures is not None:
            self.measures.swaps.labels(name, what).inc()

    # Names

    def names(self) -> list[str]:
        """What is served: programs, then ensembles."""
        return [*self.entries, *self.settings.serving.ensembles]

    def ensemble(self, name: str) -> EnsembleTable | None:
        """The table of an ensemble; None where the name is none."""
        return self.settings.serving.ensembles.get(name)

    async def standing(self, name: str) -> Standing:
        """What a name stands for now: a served one, or `NAME@3`, `NAME@champion`, `NAME@ALIAS` of a served project.

        Raises:
            Problem: 404.
        """
        if (entry := self.entries.get(name)) is not None:
            return entry.standing
        if (table := self.ensemble(name)) is not None:
            return self.entries[table.members[0]].standing
        base, _, which = name.partition("@")
        entry = self.entries.get(base)
        if entry is None or not which:
            raise Problem(404, "no_such_program", "No program of that name is served. See /v1/programs.")
        if which == "champion" or which == str(entry.standing.live.version):
            return Standing(entry.standing.live)
        return Standing(await self._version(entry, which))

    async def _version(self, entry: Entry, which: str) -> Live:
        reference = f"{entry.standing.live.name}@{which}"
        if (kept := self._versions.get(reference)) is not None:
            self._versions.move_to_end(reference)
            return kept
        async with self._loading:  # one at a time: loading is not what this server is for
            if reference not in self._versions:
                try:
                    live = await asyncio.to_thread(load_live, self.settings, reference, entry.location)
                except RegistryError as error:
                    if self.watcher.trouble is not None or error.retryable:  # whether there is one is not known
                        log.warning("%s cannot be looked up: %s", reference, error)
                        raise Problem(
                            503, "version_unusable", "The registry cannot be read now. Try again.", retry_after=10
                        ) from error
                    raise Problem(404, "no_such_version", "There is no such version of the program.") from error
                except ToolkitError as error:
                    log.warning("%s cannot be loaded: %s", reference, error)
                    raise Problem(
                        503, "version_unusable", "That version cannot be loaded. The log says why."
                    ) from error
                if not which.isdigit():
                    return live  # an alias moves: it is looked up each time
                self._versions[reference] = live
                while len(self._versions) > VERSIONS:
                    self._versions.popitem(last=False)
            return self._versions[reference]

    # Asking

    async def predict(self, name: str, inputs: dict[str, Any], ask: Ask | None = None) -> Reply:
        """The answer of a served program.

        Args:
            name: as `standing` takes it, or an ensemble's.
            inputs: as the program's types, checked.
            ask: what else; by default one answer within the settings' deadline.

        Raises:
            Exception: what `problems.problem_of` explains; `fallback.moves_of` says who did not answer.
        """
        ask = ask or Ask(time.monotonic() + self.settings.serving.deadline_seconds)
        moves: list[Move] = []
        try:
            with self.tracer.request(name, inputs, ask) as span:
                if (table := self.ensemble(name)) is not None:
                    reply = await self._together(name, table, inputs, ask, moves)
                else:
                    reply = await self._alone(name, await self.standing(name), inputs, ask, moves)
                span.answered(reply)
        finally:
            self._count(name, moves)
        self._account(reply, inputs, ask)
        return reply

    async def _alone(self, name: str, standing: Standing, inputs: dict[str, Any], ask: Ask, moves: list[Move]) -> Reply:
        order = [standing.live, *standing.fall_back]
        table = self.settings.serving.challengers.get(name)
        drawn = standing.challenger is not None and table is not None and self._random.random() < table.share
        if drawn and standing.challenger is not None and table is not None and table.answers:
            order.insert(0, standing.challenger)
        options = [Option(str(live), live.model, partial(self._ask, live, inputs, ask)) for live in order]
        answer, _ = await self.fallback.run(options, ask.deadline, moves, ask.request_id)
        reply = Reply(name, answer, ask.request_id, moves)
        if drawn and standing.challenger is not None:
            other = standing.live if answer.live is standing.challenger else standing.challenger
            self._beside(self._compare(name, standing, reply, other, inputs))
        return reply

    async def _ask(self, live: Live, inputs: dict[str, Any], ask: Ask) -> Answer:
        if ask.put is None:
            return await run(live, inputs, self._threads, messages=ask.messages, callbacks=self.tracer.callbacks())
        ask.put("start", {"program": live.name, "version": live.version, "model": live.model})
        stream = FieldStream(live.program, ask.put)
        answer = await run(
            live,
            inputs,
            self._threads,
            stream=stream if live.asynchronous else None,
            listeners=stream.listeners,
            messages=ask.messages,
            callbacks=self.tracer.callbacks(),
        )
        stream.finish(answer.trace)
        return answer

    async def _together(
        self, name: str, table: EnsembleTable, inputs: dict[str, Any], ask: Ask, moves: list[Move]
    ) -> Reply:
        lives = [self.entries[member].standing.live for member in table.members]
        weights = table.weights or (1.0,) * len(lives)
        # A judge needs about as long as a member does.
        share = self.settings.serving.fall_back_share if table.rule == "judge" else MEMBERS_SHARE
        now = time.monotonic()
        deadline = now + (ask.deadline - now) * share
        plain = Ask(deadline, messages=ask.messages, owner=ask.owner)

        async def one(live: Live) -> Answer:
            option = Option(str(live), live.model, partial(self._ask, live, inputs, plain))
            answer, _ = await self.fallback.run([option], deadline, request_id=ask.request_id)
            return answer

        began = time.perf_counter()
        found = await asyncio.gather(*(one(live) for live in lives), return_exceptions=True)
        told, votes, first = [], [], None
        usage, engine, messages = Usage(), {}, []
        for member, live, weight, said in zip(table.members, lives, weights, found, strict=True):
            if isinstance(said, BaseException):
                if not isinstance(said, Exception):
                    raise said
                first = first or said
                told.append({"member": member, "version": live.version, "error": problem_of(said).code})
                if self.measures is not None:
                    self.measures.members.labels(name, member).inc()
                continue
            votes.append(Vote(member, said.prediction, weight))
            told.append({"member": member, "version": live.version, "prediction": said.prediction})
            usage += said.usage
            messages += said.messages or []
            for key, value in said.engine.items():
                engine[key] = engine.get(key, 0) + value
        if not votes:
            raise first or TimeoutError
        outputs = list(lives[0].fields.output_types)

        async def judge(answers: Any) -> int:
            nonlocal usage
            from dspy_toolkit.serving.judged import best_of

            # In time to answer without it.
            async with asyncio.timeout(max(ask.deadline - time.monotonic(), 0) * MEMBERS_SHARE):
                place, spent = await best_of(lives[0], inputs, answers)
            usage += spent
            return place

        try:
            prediction = await combine(table.rule, votes, outputs, judge)
        except Exception as error:  # isolation boundary: the members have answered
            if table.rule != "judge":
                raise
            moves.append(Move("judge", lives[0].connection.judge.model, problem_of(error).code))
            log.warning("Request %s: %s (%s); most members decide.", ask.request_id, moves[-1], in_words(error))
            prediction = await combine("majority", votes, outputs, judge)
        answer = Answer(
            live=lives[0],
            prediction=marked(prediction, lives[0].project.abstain_below),
            usage=usage,
            seconds=time.perf_counter() - began,
            engine=engine,
            messages=messages if ask.messages else None,
        )
        if ask.put is not None:
            for key, value in prediction.items():
                if key in outputs:
                    text = value if isinstance(value, str) else str(value)
                    ask.put("field", {"predictor": name, "field": key, "run": 1, "text": text})
        agreed = agreement(votes, prediction, outputs)
        return Reply(name, answer, ask.request_id, moves, members=told if ask.members else None, agreement=agreed)

    # Beside the request

    async def _compare(self, name: str, standing: Standing, reply: Reply, other: Live, inputs: dict[str, Any]) -> None:
        outcome = "compared"
        try:
            async with asyncio.timeout(self.settings.serving.deadline_seconds):
                second = await run(other, inputs, self._threads)
        except Exception as error:  # isolation boundary: what goes on beside a request does not concern it
            outcome = problem_of(error).code
            log.info("%s beside %s: %s", other, reply.answer.live, in_words(error))
        else:
            both = {reply.answer.live: reply.answer.prediction, other: second.prediction}
            challenger = standing.challenger
            if challenger is not None and standing.live in both and challenger in both:
                self.challengers.keep(
                    reply.request_id, name, standing.live, challenger, both[standing.live], both[challenger]
                )
        if self.measures is not None:
            self.measures.shadows.labels(name, outcome).inc()

    def _beside(self, work: Any) -> None:
        if len(self._background) >= self.settings.serving.threads:  # it gives way to requests
            work.close()
            return
        self._keep(asyncio.ensure_future(work))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _account(self, reply: Reply, inputs: dict[str, Any], ask: Ask) -> None:
        from pydantic_core import to_jsonable_python

        answer = reply.answer
        self.remembered.keep(
            Served(
                request_id=reply.request_id,
                owner=ask.owner,
                program=reply.program,
                version=answer.live.version,
                project=answer.live.name,
                inputs=to_jsonable_python(inputs, fallback=str),
                prediction=answer.prediction,
                cached=answer.cached,
                seconds=answer.seconds,
                trace_id=reply.trace_id,
            )
        )
        if self.measures is None:
            return
        if answer.cached:
            self.measures.cached.labels(reply.program).inc()
        else:
            self.measures.tokens.labels(reply.program, "prompt").inc(answer.usage.prompt_tokens)
            self.measures.tokens.labels(reply.program, "completion").inc(answer.usage.completion_tokens)

    def _count(self, name: str, moves: list[Move]) -> None:
        if self.measures is not None:
            for move in moves:
                self.measures.moves.labels(name, move.program, move.why).inc()


def _champions(settings: Settings) -> list[str]:
    """The projects that have a champion. Raises SettingsError where there is none."""
    from dspy_toolkit.registry import champion, list_projects

    found = [name for name in list_projects(settings) if champion(settings, name).version is not None]
    if not found:
        raise SettingsError(
            "There is no champion to serve yet. Make one with `python -m flows.optimize_program --project router`, or name a "
            "project to serve its own program: `dspy-toolkit serve --program router`."
        )
    return found
