"""How programs of one launch tell each other that data is ready. The argument for both is in docs/schedules.md."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def follow(CHAINED: tl.constexpr):
    """Let the next launch begin, and wait for the one before: all that it stored is seen from here on.

    Comes first in every kernel of a chain. The launch that follows gets places on the SMs as soon as all programs of
    this one have theirs, and waits there: neither the launch itself nor the last programs leave the GPU idle.
    """
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def wait_for(counter_ptr, target):
    """Return when the counter has reached target: every thread then sees what was stored before it was counted.

    Only the last look acquires: an acquiring one empties the SM's L1, for all programs there.
    """
    while tl.atomic_add(counter_ptr, 0, sem="relaxed", scope="gpu") < target:
        pass
    tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def publish(counter_ptr):
    """Count one finished part, after all stores of all threads of this program; return the count before.

    Whoever sees the last count also sees every store that the others published.
    """
    tl.debug_barrier()
    before = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return before
