"""What `visrec check` finds: facts, problems and remarks, and how they are reported."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.pipelines.night_command import flag
from visrec.pipelines.proposals import Proposal
from visrec.storage.store import Store


class Findings:
    """Collects the facts and what is wrong with them.

    Attributes:
        rows: rows of the summary, with any values that JSON can hold.
        problems: the errors with which a job would refuse the data.
        remarks: what a user should know, although jobs run.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.problems: list[InputError] = []
        self.remarks: list[str] = []
        self.solution = ""  # a sentence on what solves all problems

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Collects what a job would refuse, so that the check goes on."""
        try:
            yield
        except InputError as error:
            # Without its traceback, which would keep the data in memory.
            self.problems.append(InputError(str(error)))

    def merge_proposed(self, proposals: Sequence[Proposal], after: "Findings") -> "Findings":
        """The findings of the check with proposed keys, preceded by these problems.

        The message of a problem that a proposed key solves ends with the proposal.

        Args:
            proposals: the keys.
            after: what the check with these keys found.
        """
        problems = list(self.problems)
        for proposal in proposals:
            words = flag(proposal.key, proposal.value)
            if any(words in str(problem) for problem in problems):
                continue  # the message has the proposal already
            solved = next((n for n, p in enumerate(problems) if proposal.key in p.keys), None)
            if solved is None:
                problems.append(InputError(f"The data need {words}: {proposal.why}."))
                continue
            text = str(problems[solved]).removesuffix(".")
            problems[solved] = InputError(f"{text}. Proposed: {words}.")
        merged = Findings()
        merged.rows, merged.remarks = after.rows, after.remarks
        merged.problems = [*problems, *after.problems]
        if not after.problems:
            merged.solution = "`visrec init` writes keys with which a night can run."
        return merged

    def report(self, workspace: Store | None, summary: Summary) -> None:
        """Puts the facts into the summary.

        If a job would refuse the data, it also prints the summary, and writes it, because the job
        ends here.

        Args:
            workspace: where it is written; None for nowhere.
            summary: receives the facts.

        Raises:
            InputError: a job would refuse the data.
        """
        summary.rows = dict(self.rows)
        if self.remarks:
            summary.rows["remarks"] = " ".join(dict.fromkeys(self.remarks))
        problems = list(dict.fromkeys(map(str, self.problems)))
        if not problems:
            summary.rows["verdict"] = "ready: a night can run"
            return
        count = f"{len(problems)} fault{'s' if len(problems) > 1 else ''}"
        summary.rows["verdict"] = f"not ready: {count}, see below"
        summary.print()
        summary.rows["problems"] = problems
        if workspace is not None:
            summary.write_if_possible(workspace)
        if len(problems) > 1:
            numbered = [f"({n}) {problem}" for n, problem in enumerate(problems, 1)]
            problems = [f"{count}.", *numbered]
        raise InputError(" ".join([*problems, self.solution]).strip())
