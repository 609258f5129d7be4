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
        "An operator was new, or had new shapes: it ran at once, and waited for what it reads.",
        "Normal in the first steps. If it never stops, keep shapes in a few buckets.",
    ),
    Reason(
        "FLUSH_FORK",
        "The process forked, as DataLoader workers do.",
        "Start workers once, before the loop: persistent_workers=True.",
    ),
    Reason("FLUSH_CALLED", "The program called outrider.flush() inside the step.", "Remove the call."),
    Reason(
        "FLUSH_STEP_OUTSIDE",
        "Between the step before and this one, the program waited for values of a step.",
        "If it happens every time, make that code part of the step, or read less often.",
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
        "A tensor had another shape, dtype, layout or requires_grad than recorded.",
        "Pad or bucket inputs, and drop the last incomplete batch (drop_last=True).",
    ),
    Reason(
        "DIV_ENV",
        "A mode or setting differed: gradients, inference, autocast, default dtype, numeric flags, compiled code.",
        "Enter such modes the same way in each step; set flags once, before the loop.",
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
        "The program used the memory of a tensor directly that the plan goes on to use, or holds such memory.",
        "Move it to the end of the step, and keep a copy instead of an alias (.numpy().copy()).",
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
        "A parameter took part in backward and got no gradient, or backward replaced one that existed.",
        "Leave out parameters that cannot get a gradient; clear gradients in the same way each step.",
    ),
    Reason(
        "INNER_UNSTABLE",
        "No two recordings of this path agreed.",
        "Look at the divergences: something differs in each step.",
    ),
    Reason(
        "INNER_FOREIGN",
        "Something in the step fits no plan: a custom operator, a sparse tensor, a dispatch mode, hidden memory.",
        "Move it to the start or the end of the loop body, outside the step.",
    ),
    Reason(
        "INNER_DATA_DEPENDENT",
        "Inside an operator a shape or a host value depends on data, or a tensor changes its shape in place.",
        "Prefer a fixed shape: torch.where, multiplication by a mask; views instead of resize_ and t_.",
    ),
    Reason(
        "INNER_HISTORY",
        "An input carries autograd history from outside the step, or a result keeps its own beyond it.",
        "Compute the input inside the step or detach it; detach what the step keeps or returns.",
    ),
    Reason(
        "INNER_ENV",
        "The outer lane cannot work: its key is taken, accesses are not seen, or a numeric flag is set in the step.",
        "Set flags before the loop; look for another library that intercepts operators; leave the option graft on.",
    ),
    Reason("INNER_OPTION", "outrider.options(lane='inner') asked for it.", "Set lane='auto'."),
    # Off: the step ran plainly.
    Reason(
        "OFF_KEYS",
        "Another library in this process holds the dispatch key that co-execution needs.",
        "Find out which library registers a fallback for that key, and do without one of the two.",
    ),
    Reason("OFF_OPTION", "outrider.options(lane='off') asked for it.", "Set lane='auto'."),
    Reason(
        "OFF_ENV",
        "The graph runner has been stopped: the program is ending.",
        "Nothing to do.",
    ),
)

REASONS: dict[str, Reason] = {reason.code: reason for reason in _REASONS}


def describe(code: str) -> Reason:
    """The reason for ``code``; one that says so for a code this version does not know."""
    return REASONS.get(code) or Reason(code, "A reason that this version of the report does not know.", "")
