"""The training loop on one screen: sample, play, judge, keep, credit, learn, remember, report.

Every random draw is a function of the run's seed and of the iteration, and all else that a run remembers is a value in
its state, so a run that was killed at any moment and resumed is the run that was not.
"""

from dataclasses import replace
from itertools import count

from agentflow.batch import lay_out
from agentflow.columns import part
from agentflow.trainers.algorithm import Algorithm
from agentflow.trainers.engines.base import Credit, Update
from agentflow.trainers.judging import judge, pay_kept
from agentflow.trainers.session import Session
from agentflow.trainers.slots.records import Found, Now, Seen
from agentflow.trainers.state import RunState


def train(session: Session) -> None:
    """Run every iteration that is left; see `Session` for what each step means.

    Raises:
        RunAborted: Too many episodes failed, the sampler has drifted from the learner, an armed alarm rang, or a frozen
            model has used up its tokens.
        StorageError: The disk is full; the latest checkpoint stands.
    """
    state = session.restored()
    with session.opened(state):
        if state.iteration == 0:
            session.log(0, {})
        for iteration in session.iterations(state.iteration):
            now = session.now(iteration, state)
            algorithm = session.algorithm.at(now, state.slots)
            found = collect(session, algorithm, state, now=now)
            session.store(found, state)
            update = learn(session, algorithm, found, state=state, now=now)
            row = session.report(Seen(now, found, {}), update)
            state = session.observed(state, Seen(now, found, row))
            session.log(iteration, row | {"alarm": int(bool(state.alarm["rings"]))})
            session.journal.keep(state)


def collect(session: Session, algorithm: Algorithm, state: RunState, *, now: Now) -> Found:
    """Draw, play and judge in rounds, until the sampler wants no more."""
    found = Found()
    for number in count():
        draws = session.draws(algorithm.sampler, state, found=found, number=number, now=now)
        if not draws or found.spent:
            return found
        collected = session.play(draws, algorithm.plan, state, number=number, now=now)
        judged = judge(collected, session.shaper(state), algorithm, now=now)
        found = found.plus(judged, collected)
    raise AssertionError("a sampler ends by drawing nothing")


def learn(session: Session, algorithm: Algorithm, found: Found, *, state: RunState, now: Now) -> Update:
    """Make the iteration's updates from the groups that are kept."""
    engine, update = session.engine, Update()
    batch = lay_out(pay_kept(found.kept, algorithm, now=now))
    with session.updating() as clock:
        before = engine.score(batch, algorithm.needs_before)
        advantages_S = algorithm.advantage(batch, before, state.slots)
        shares = batch.shares(session.config.learner.updates_per_iteration, whole_groups=algorithm.compares_in_loss)
        # What later shares start from is scored before the weights change; the first meets it when differentiated.
        needs = [algorithm.needs_in(number) - before.keys() for number in range(len(shares))]
        known = [{**part(before, s.span), **engine.score(s.batch, n)} for s, n in zip(shares, needs, strict=True)]
        for share, columns in zip(shares, known, strict=True):
            credit = Credit(advantages_S[share.span], algorithm.weights(share.batch, columns))
            gradient = engine.differentiate(share.batch, algorithm.loss, credit=credit, known=columns)
            drift = update.drift or session.drift(batch, gradient, known=known, state=state)
            update = update.plus(gradient, engine.apply(), drift)
    return replace(update, duration_s=clock.seconds)
