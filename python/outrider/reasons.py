"""Stable reason codes: what each means, and what a user can do about it.

``docs/guide/explain.md`` tells the same at length; a test keeps the two complete.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One code, for people: ``meaning`` and ``remedy`` are single sentences without a line break."""

    code: str
    meaning: str
    remedy: str


_REASONS = (
    # Flushes: the program waited until the graph runner had caught up.
    Reason(
        "FLUSH_FETCH",
        "The program read a value: .item(), .cpu(), or a tensor in an if.",
        "Normal once a step. Read less often (log every tenth step), or at the end of the step.",
    ),
    Reason(
        "FLUSH_RAW_ACCESS",
        "The memory of a tensor was used directly: .numpy(), .tolist(), .data_ptr(), DLPack, a storage.",
        "Move it to the end of the step, or out of it; read a single number with .item().",
    ),
    Reason(
        "FLUSH_FOREIGN_OP",
        "An operator ran that cannot be delegated: a custom library, a tensor subclass, a dispatch mode.",
        "Call it at the very start or end of the step, so that the rest stays in one piece.",
    ),
    Reason(
        "FLUSH_DATA_DEPENDENT",
        "The shape of a result depends on values: nonzero, masked_select, unique, x[mask].",
        "Prefer a fixed shape: torch.where, multiplication by a mask, or a padded top-k.",
    ),
    Reason(
        "FLUSH_FLAG",
        "A setting that changes numerics, generator state, or a stream was touched inside the step.",
        "Set it once before the loop.",
    ),
    Reason(
        "FLUSH_ESCAPED",
        "Memory of a tensor is shared with code outside PyTorch, so each write has to arrive at once.",
        "Drop the alias, or keep a copy instead (.numpy().copy()).",
    ),
    Reason(
        "FLUSH_RECORD",
        "A recording step began or ended, and pending work was completed first.",
        "Nothing to do: part of the first steps, and of a rare audit later.",
    ),
    Reason(
        "FLUSH_FORK",
        "The process forked, as DataLoader workers do.",
        "Start workers once, before the loop: persistent_workers=True.",
    ),
    Reason(
        "FLUSH_STEP_OUTSIDE",
        "Values of a step were used between two steps.",
        "If it happens every time, make that code part of the step.",
    ),
    Reason(
        "FLUSH_DEBUG",
        "A debugging mode (flush=every or flush=random) completed pending work.",
        "Nothing to do; outrider.options(flush='never') ends it.",
    ),
    # Divergences: the program did something else than any recording.
    Reason(
        "DIV_NEW_PATH",
        "The program took a path that no recording knows; it ran eagerly and was recorded.",
        "Normal the first times. If it never stops, reduce the number of variants: bucket lengths, for instance.",
    ),
    Reason(
        "DIV_META",
        "A tensor had another shape, dtype, layout or device than recorded.",
        "Pad or bucket inputs, and drop the last incomplete batch (drop_last=True).",
    ),
    Reason(
        "DIV_ENV",
        "A mode differed from the recording: gradients, autocast, determinism, threads, inference.",
        "Enter such modes the same way in each step.",
    ),
    Reason(
        "DIV_ARGUMENT",
        "A number, list or flag given to an operator differed from the recording.",
        "If it changes each step, pass it as a 0-dim tensor.",
    ),
    Reason(
        "DIV_WIRING",
        "An operator received another tensor than in the recording.",
        "Normal after a change of data structures. If it repeats, avoid re-creating parameters or buffers in the loop.",
    ),
    Reason(
        "DIV_BACKWARD",
        "The backward pass differed: other roots, other leaves, or .grad present where it was None.",
        "Clear gradients in the same way each step: zero_grad() always, with the same set_to_none.",
    ),
    Reason(
        "DIV_RAW_ACCESS",
        "The program used the memory of a value that the graph had kept for itself.",
        "Nothing to do: the next plan provides that value.",
    ),
    Reason(
        "DIV_EXCEPTION",
        "The step raised. What came before was completed as eager execution does, and the exception passed on.",
        "Nothing to do for coexec.",
    ),
    Reason("DIV_FORCED", "outrider.options(force_divergence=...) asked for it.", "Set the option back to None."),
    Reason(
        "DIV_STEP_ENDED",
        "The step ended before the recorded path did: an early return, or a shorter loop.",
        "Normal the first times; the shorter path is recorded as well.",
    ),
    # Inner lane: still exact and covered, but the autograd graph is built on the host.
    Reason(
        "INNER_HOOK",
        "A hook on a tensor, parameter or autograd node runs user code inside the backward pass.",
        "Remove the hook, or do its work after backward().",
    ),
    Reason(
        "INNER_PYNODE",
        "A custom autograd.Function takes part in the backward pass.",
        "Express it with differentiable operators if it need not be custom.",
    ),
    Reason(
        "INNER_GRAPH_API",
        "The program uses the autograd graph itself: autograd.grad, inputs=, create_graph, retain_graph.",
        "Use a plain .backward() where that is enough.",
    ),
    Reason(
        "INNER_GRAD_STATE",
        "The state of .grad changes from step to step in a way that no single plan can reproduce.",
        "Clear gradients in the same way each step.",
    ),
    Reason(
        "INNER_UNSTABLE",
        "No two recordings of this path agreed.",
        "Look at the divergences: something differs in each step.",
    ),
    Reason(
        "INNER_FOREIGN",
        "The result of an operator that cannot be delegated needs a gradient.",
        "Detach it, or move that operator out of the differentiated part.",
    ),
    Reason(
        "INNER_DATA_DEPENDENT",
        "A result whose shape depends on values needs a gradient.",
        "Prefer a fixed shape: torch.where, multiplication by a mask.",
    ),
    Reason(
        "INNER_HISTORY",
        "An input of the step already carries autograd history from outside.",
        "Compute it inside the step, or detach it.",
    ),
    Reason(
        "INNER_ENV",
        "The outer lane cannot work in this process: its dispatch key is taken, or accesses to tensors cannot be seen.",
        "Look for another library that intercepts operators; leave the option graft on.",
    ),
    Reason("INNER_OPTION", "outrider.options(lane='inner') asked for it.", "Set lane='auto'."),
    # Off: the step ran plainly.
    Reason(
        "OFF_KEYS",
        "Something else intercepts operators on this thread: a dispatch mode, tracing, or a functional transform.",
        "Run the step outside it.",
    ),
    Reason(
        "OFF_ENV",
        "Co-execution is not possible in this environment, or was switched off by an option.",
        "Check OUTRIDER in the environment and outrider.options(lane=...).",
    ),
    Reason(
        "OFF_UNSTABLE",
        "The step never did the same thing twice, so recording stopped.",
        "Co-execute a smaller, more regular part of the loop.",
    ),
)

REASONS: dict[str, Reason] = {reason.code: reason for reason in _REASONS}


def describe(code: str) -> Reason:
    """The reason for ``code``; one that says so for a code this version does not know."""
    return REASONS.get(code) or Reason(code, "A reason that this version of the report does not know.", "")
