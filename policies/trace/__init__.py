"""What was asked for, when, and how large it was: as a value, from an order, and from others' `formats`."""

from policies.trace.trace import MOST_BYTES, Trace, order_trace

__all__ = ["MOST_BYTES", "Trace", "order_trace"]
