"""A run whose data have no more to tell one model: a committee, and the student that learns from it."""

import dataclasses
import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from physicsml_ase.checkpoint import load_potential
from physicsml_ase.config import ModelConfig, to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.train.copies import TAUGHT
from physicsml_ase.train.finish import tell_the_end
from physicsml_ase.train.fit import Result, Start, fit, last_checkpoint, said_before
from physicsml_ase.train.folder import RunFolder, committee_folder, is_first_process, student_folder
from physicsml_ase.train.given import Data, refuse_changed_data
from physicsml_ase.train.overfitting import of_part
from physicsml_ase.train.parts import open_data
from physicsml_ase.train.plan import Member, Plan, TimeLeft, good, kinds_of
from physicsml_ase.train.settings import RunConfig

log = logging.getLogger("physicsml_ase")


def fit_and_teach(config: RunConfig, data: Data, folder: RunFolder, begin: Start) -> Result:
    """One training and, where its data had no more to tell, a committee and their student."""
    record = folder.read_record() if folder.record.exists() else {}
    if "plan" in record:  # an earlier session came so far
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"{folder.root}: its committee was begun by one process: continue with one")
        with said_before(True):
            refuse_changed_data(record.get("summary") or {}, open_data(config, data._asdict()).summary)
        first = Result(load_potential(folder.model), folder, record["best"], record["test"], 0)
    else:
        first = fit(config, data, folder, begin)
        record = folder.read_record() if is_first_process() else {}
        if "plan" not in record:
            return first
    last = None
    try:
        # with what was left to the data, and where the first training was
        place = folder.read_config()["trainer"]["accelerator"]
        trainer = dataclasses.replace(config.trainer, accelerator=place)
        same = dataclasses.replace(config, model=first.potential.config, trainer=trainer)
        last = first if first.interrupted else _taught(same, data, folder, record)
    except InputError as error:
        log.warning("the committee and its student were given up: %s", error)
    if last is not None and last.interrupted:
        folder.write_record(status="interrupted")
        tell_the_end(folder, first.best, first.test_errors, True)
        return first._replace(interrupted=last.interrupted)
    alone = {"best": first.best, "test": first.test_errors}
    if last is not None and last.best.get("score", math.inf) < first.best["score"]:
        folder.publish(last.folder.model)
        first = last._replace(folder=folder)
    folder.write_record(best=first.best, test=first.test_errors, status="finished", alone=alone)
    tell_the_end(folder, first.best, first.test_errors, False)
    return first


def _taught(config: RunConfig, data: Data, folder: RunFolder, record: Mapping[str, Any]) -> Result:
    """The student of a committee, or the part at which it was interrupted."""
    if len(record["plan"]) != len(Plan._fields):
        raise InputError("they were begun by an earlier version")
    plan, kinds = Plan(*record["plan"]), kinds_of(config.model)
    costs = [cost for _, cost in kinds]
    members = [Member(steps, kind, score) for steps, kind, score in record.get("members", [])]
    rest = plan.total - plan.spent(members, costs)
    time_left = TimeLeft.of(record["seconds"], rest / plan.total)
    while (member := plan.next_member(members, costs)) is not None:
        number, model = len(members) + 1, kinds[member.kind][0]
        words = "committee: member %d, %d steps%s"
        log.info(words, number, member.steps, _unlike(config.model, model))
        share = time_left.share(plan.spent([member], costs) / rest)
        own = dataclasses.replace(config, model=model)
        part = committee_folder(folder.root, number)
        try:
            begin = Start(member=number, own=own, followed=True)
            result = _part(of_part(own, member.steps, share), data, part, begin)
        except InputError as error:
            log.warning("member %d was given up: %s", number, error)
        else:
            if result.interrupted:
                return result
            member = member._replace(score=result.best.get("score", math.inf))
        members.append(member)
        folder.write_record(members=[list(m) for m in members])
        rest = plan.total - plan.spent(members, costs)
    numbers = [place + 1 for place in good([m.score for m in members])]
    if not numbers:
        raise InputError("there are no two members that came to a good end")
    log.info("student of members %s; about %d steps", ", ".join(map(str, numbers)), rest)
    folder.write_record(teachers=numbers)
    paths = tuple(committee_folder(folder.root, number).model for number in numbers)
    epochs = rest * (record["best"]["epoch"] + 1) / record["best"]["step"]
    begin = Start(teachers=paths, epochs=epochs, own=config, at=time.monotonic())
    part = student_folder(folder.root)
    seconds = time_left.share(1.0)
    given = config.trainer
    only_time = seconds is not None and given.max_steps < 1 and (given.max_epochs or -1) < 1
    student = _part(of_part(config, -1 if only_time else rest, seconds), data, part, begin)
    if not student.interrupted:
        (part.root / TAUGHT).unlink(missing_ok=True)
    return student


def _unlike(own: ModelConfig, model: ModelConfig) -> str:
    """In words, how a member's model is another than the run's."""
    mine, others = to_plain(own), to_plain(model)
    return "".join(f", {key}={value}" for key, value in others.items() if mine[key] != value)


def _part(config: RunConfig, data: Data, folder: RunFolder, begin: Start) -> Result:
    """One of several trainings of a run, from where it is."""
    if folder.is_finished:
        record = folder.read_record()
        return Result(load_potential(folder.model), folder, record["best"], record["test"], 0)
    if folder.is_used:  # its time is what it began with
        config = validate(RunConfig, folder.read_config(), where=str(folder.config))
    else:
        folder.create()
        folder.write_record(status="started")
    return fit(config, data, folder, begin._replace(ckpt=last_checkpoint(folder)))
