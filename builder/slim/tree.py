"""Many files: find the libraries, let the profile decide, prune, prove, and put each result in its place.

    find ──▶ decide ──▶ prune ──▶ prove ──▶ put      each file for itself, several at a time, the largest first
    (walk)   (licences) (prune)   (proof)   (swap)

A file is replaced whole or not touched; a run that ends early leaves whole files only, and the next one goes on.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import ctypes
import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuilderError, CapabilityError, ConfigError
from builder.slim import licences, proof, swap
from builder.slim.chips import Chip
from builder.slim.layout import Mismatch
from builder.slim.owners import Owners
from builder.slim.prune import Pruned, prune
from builder.slim.report import Fault, Item, Report, weight
from builder.slim.walk import Found, find, remove_leftovers

WRONG_USE = {"not-elf", "class", "byte-order", "machine", "nothing-left"}
UNKNOWN = {"version", "pointer"}
REPORT = "the file is as it was; report its package and version, and what is said above"
Progress = Callable[[str, int, int], None]
FULL = (errno.ENOSPC, errno.EDQUOT)
STOPS = (*FULL, errno.EROFS)


@dataclass(frozen=True)
class Job:
    """One file's work, as a process gets it. cuobjdump, load: which proofs to run before the file is put in its place."""

    found: Found
    gpus: tuple[Chip, ...]
    modify: bool
    cuobjdump: Path | None
    load: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a job. packed_before, packed_after: see Item.  stops: the next file would only meet the same fault."""

    pruned: Pruned | None = None
    packed_before: int = 0
    packed_after: int = 0
    notes: tuple[str, ...] = ()
    fault: Fault | None = None
    stops: bool = False


def slim(
    paths: Sequence[Path],
    gpus: tuple[Chip, ...],
    profile: str,
    *,
    packages: dict[str, str] | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    cuobjdump: Path | None = None,
    load: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Every library in `paths` without the GPU code that none of `gpus` can use.

    packages: pattern of a file's name → the package that it belongs to, in place of what dist-info says.
    workers: processes; None: one per core.  progress: called with a file's path, its bytes, and those of
    all: first with no path before anything is done, then for each file that is done.
    cuobjdump: the program that must list what is kept.  load: every pruned library must load as the original does.
    Faults of files are in the report, and `Report.failure` makes an error of them; those of a file that was named, or that
    the machine could not write. Raises ConfigError, before anything is done, for a path that is not there.
    """
    if profile not in licences.PROFILES:
        raise ConfigError(f"profile {profile!r}: expected one of {', '.join(licences.PROFILES)}")
    if not gpus:
        raise ConfigError("no chip is named to keep code for", hint="--gpu 9.0 is an H100")
    seen = find(paths, clean=not dry_run)
    owners = Owners()
    decisions = [_decide(one, profile, owners, packages or {}) for one in seen]
    jobs = [
        Job(one, gpus, decision.modify and not one.outside and not dry_run, cuobjdump, load)
        for one, decision in zip(seen, decisions, strict=True)
    ]
    outcomes = _run(jobs, workers or os.cpu_count() or 1, progress)
    if not dry_run and any(one.stops for one in outcomes):
        remove_leftovers(paths)  # a process that was ended could not clear up
    items = [_item(*one) for one in zip(seen, decisions, outcomes, strict=True)]
    return Report(
        gpus=tuple(map(str, gpus)),
        profile=profile,
        dry_run=dry_run,
        verified=bool(cuobjdump or load) and not dry_run,
        files=tuple(sorted((one for one in items if one.status != "no-gpu-code"), key=lambda one: one.path)),
        plain=sum(one.status == "no-gpu-code" for one in items),
    )


def _decide(found: Found, profile: str, owners: Owners, packages: dict[str, str]) -> licences.Decision:
    package, metadata = owners.of(found.real)
    for pattern, named in packages.items():
        if found.real.match(pattern):
            package, metadata = named, ""
    return licences.decide(profile, found.real.name, package, metadata)


def _run(jobs: list[Job], workers: int, progress: Progress | None) -> list[Outcome]:
    """One outcome per job, in the order of `jobs`; those that were not reached have a fault without a message."""
    outcomes = [Outcome(fault=Fault("", "")) for _ in jobs]
    largest = sorted(range(len(jobs)), key=lambda i: -jobs[i].found.size)
    workers, total = min(workers, len(jobs)), sum(job.found.size for job in jobs)
    if progress:
        progress("", 0, total)
    for index, outcome in _alone(jobs, largest) if workers < 2 else _together(jobs, largest, workers):
        outcomes[index] = outcome
        if progress:
            progress(jobs[index].found.shown, jobs[index].found.size, total)
    return outcomes


def _alone(jobs: list[Job], order: list[int]) -> Iterator[tuple[int, Outcome]]:
    for index in order:
        outcome = work(jobs[index])
        yield index, outcome
        if outcome.stops:
            return


def _together(jobs: list[Job], order: list[int], workers: int) -> Iterator[tuple[int, Outcome]]:
    """In processes started afresh: a fork of a program that draws its progress from a thread may hang."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (os.getpid(),)) as pool:
        # Ctrl-C is for the parent, which lets the files in work be finished: the processes inherit that it is blocked.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        waiting = {pool.submit(work, jobs[index]): index for index in order}
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            for done in concurrent.futures.as_completed(waiting):
                if done.cancelled():
                    continue
                index = waiting[done]
                if isinstance(done.exception(), concurrent.futures.process.BrokenProcessPool):
                    yield index, _ended(jobs[index])
                    return
                yield index, done.result()
                if done.result().stops:
                    pool.shutdown(wait=False, cancel_futures=True)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _ended(job: Job) -> Outcome:
    message = f"{job.found.shown}: a process was ended that read it or another file, perhaps for want of memory"
    return Outcome(fault=Fault(CapabilityError.code, message, "run the same again with fewer --workers"), stops=True)


def _begin(parent: int) -> None:
    """In each new process: end with the parent, however it ends."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def work(job: Job) -> Outcome:
    """Prune one file, prove the result, put it in its place. Any fault leaves the file as it was."""
    shown = job.found.shown
    try:
        if not job.modify:
            return _look(job)
        with swap.locked(job.found.real) as old:
            return _replace(job, old)
    except BuilderError as exc:
        return Outcome(fault=Fault(exc.code, exc.message, exc.hint))
    except Mismatch as exc:
        return Outcome(fault=Fault("claim", f"{shown}: read again, the pruned copy is wrong: {exc}", REPORT))
    except OSError as exc:
        return Outcome(fault=_unwritable(shown, exc), stops=exc.errno in STOPS)


def _unwritable(shown: str, exc: OSError) -> Fault:
    if exc.errno in FULL:
        message = f"{shown}: no space beside it for the pruned copy: {exc.strerror}"
        return Fault(CapabilityError.code, message, "free some, then run the same again: it goes on")
    message = f"{shown}: cannot be read or replaced: {exc.strerror}"
    if exc.errno == errno.ENAMETOOLONG:
        return Fault(CapabilityError.code, message, "its copy is written beside it, under a name that is 15 bytes longer")
    return Fault(CapabilityError.code, message, "read permission for it, and write permission for its folder, are needed")


def _look(job: Job) -> Outcome:
    """What pruning would do."""
    pruned = prune(job.found.real, None, job.gpus)
    if pruned.status == "no-gpu-code":
        return Outcome(pruned)
    before = weight(job.found.real)
    # The file is not written, so it cannot be weighed: in proportion. GPU code weighs more than the rest, so this is too much.
    after = round(before * (pruned.size_after - pruned.zeroed) / max(1, pruned.size_before))
    return Outcome(pruned, before, after)


def _replace(job: Job, old: os.stat_result) -> Outcome:
    path = job.found.real
    new = swap.beside(path)
    try:
        pruned = prune(path, new, job.gpus)
        if pruned.status != "pruned":
            before = 0 if pruned.status == "no-gpu-code" else weight(path)
            return Outcome(pruned, before, before)
        before, after = weight(path), weight(new)
        fault, notes = _prove(job, new)
        if fault:
            return Outcome(
                pruned, before, before, fault=Fault("claim", f"{job.found.shown}: pruned, it fails: {fault}", REPORT)
            )
        swap.put(new, (path, *job.found.links), old)
        return Outcome(pruned, before, after, notes)
    finally:
        new.unlink(missing_ok=True)


def _prove(job: Job, new: Path) -> tuple[str, tuple[str, ...]]:
    """(fault, notes): both proofs, against the original."""
    notes = []
    if job.cuobjdump:
        fault, note = proof.lists(new, job.found.real, job.cuobjdump)
        if fault:
            return fault, ()
        notes.append(note)
    if job.load:
        fault, note = proof.loads(new, job.found.real)
        if fault:
            return fault, ()
        notes.append(note)
    return "", tuple(note for note in notes if note)


def _item(found: Found, decision: licences.Decision, outcome: Outcome) -> Item:
    """The outcome, with the reasons why a file was left."""
    pruned, fault = outcome.pruned, outcome.fault
    after = outcome.packed_after
    if fault and not fault.message:
        status, reason, fault, after = "left", "not reached: another file's fault ended the run", None, outcome.packed_before
    elif fault or pruned is None:
        status, reason, after = "failed", fault.message if fault else "", outcome.packed_before
    else:
        status, reason = pruned.status, pruned.reason
        if status == "left" and found.named:
            kind = "config" if pruned.error in WRONG_USE else "integrity"
            fault = Fault(kind, f"{found.shown}: left as it was: {reason}", _hint(pruned.error))
        elif status == "pruned" and not decision.modify:
            status, reason, after = "licence", decision.reason, outcome.packed_before
        elif status == "pruned" and found.outside:
            status, after = "left", outcome.packed_before
            reason = f"{found.outside} more of its names lie elsewhere; name their folders too, or they would stay whole"
    return Item(
        found.shown, tuple(map(str, found.links)), decision, status, reason, pruned, outcome.packed_before, after,
        outcome.notes, fault,
    )  # fmt: skip


def _hint(error: str) -> str:
    if error == "nothing-left":
        return "add a chip that it has code for to --gpu, or leave the file out"
    if error in WRONG_USE:
        return "give shared libraries, or a folder: what is none is passed over there"
    return "keep it as it is: it is whole, but made in a way that is not known" if error in UNKNOWN else "fetch it again"
