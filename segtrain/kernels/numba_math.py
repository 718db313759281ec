"""The arithmetic of the kernels for CPUs: exponentials and logarithms that vectorise, and half-precision numbers.

Numba has the C library's functions, one number at a time; these work on as many at once as the processor can.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from segtrain.kernels.numba_compile import exact

F32, I32 = np.float32, np.int32
ROOT_HALF = 0x3F3504F3  # √½ as bits
LOG2_E, ROUNDING = F32(1.4426950408889634), F32(1.5 * 2**23 + 127)  # added, leaves n + 127 in the last bits
LN2_HIGH, LN2_LOW = F32(0.693359375), F32(-2.12194440e-4)
# e to less counts as 0: its products with slopes are still normal numbers, and others are many times slower
LOWEST32, LOWEST64 = F32(-60), -500.0


def exponential(x):
    """Return e^x of x <= 0, 0 for what is too small to count; in compiled code alone, as the next two."""


@overload(exponential)
def _(x):
    return (lambda x: _exponential32(x)) if x == types.float32 else (lambda x: _exponential64(x))


def logarithm(x):
    """Return log x of a normal number; anything for others."""


@overload(logarithm)
def _(x):
    return (lambda x: _logarithm32(x)) if x == types.float32 else (lambda x: math.log(x))


def one_less(loss):
    """Return 1 − e^{−loss} of a loss >= 0, to the last digit of a small one."""


@overload(one_less)
def _(loss):
    return (lambda loss: _one_less32(loss)) if loss == types.float32 else (lambda loss: -math.expm1(-loss))


@exact
def _one_less32(loss):
    small = loss if loss < F32(0.25) else F32(0)
    tail = F32(1 / 24) - small * (F32(1 / 120) - small * F32(1 / 720))  # of the series of 1 − e^{−x}
    of_small = small * (F32(1) - small * (F32(0.5) - small * (F32(1 / 6) - small * tail)))
    return of_small if loss < F32(0.25) else F32(1) - exponential(-loss)


@exact
def power(q, exponent):
    """Return q^exponent for q in [0, 1] and an exponent >= 0; 0^0 is 1."""
    of_none = F32(1) if exponent == 0 else F32(0)
    result = exponential(exponent * logarithm(q if q > 0 else q + F32(1)))
    return result if q > 0 else q + of_none  # NaN stays


@exact
def _exponential32(x):
    """2^n · e^r, |r| <= log(2) / 2, in which e^r is a polynomial (the minimax fit of Cephes' expf)."""
    bounded = LOWEST32 if x < LOWEST32 else x  # NaN stays
    shifted = bounded * LOG2_E + ROUNDING
    n = shifted - ROUNDING
    r = bounded - n * LN2_HIGH - n * LN2_LOW
    p = F32(1.9875691500e-4) * r + F32(1.3981999507e-3)
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    p = p * r * r + r + F32(1)
    return F32(0) if x < LOWEST32 else p * from_bits(I32(bits(shifted) << 23))


@exact
def _exponential64(x):
    return 0.0 if x < LOWEST64 else math.exp(x)


@exact
def _logarithm32(x):
    """n log 2 + log m, m in [√½, √2), in which log m is a polynomial (the minimax fit of Cephes' logf)."""
    difference = I32(bits(x) - ROOT_HALF)
    n = F32(I32(difference >> 23))
    r = from_bits(I32(I32(difference & 0x7FFFFF) + ROOT_HALF)) - F32(1)
    p = F32(7.0376836292e-2) * r - F32(1.1514610310e-1)
    p = p * r + F32(1.1676998740e-1)
    p = p * r - F32(1.2420140846e-1)
    p = p * r + F32(1.4249322787e-1)
    p = p * r - F32(1.6668057665e-1)
    p = p * r + F32(2.0000714765e-1)
    p = p * r - F32(2.4999993993e-1)
    p = p * r + F32(3.3333331174e-1)
    square = r * r
    return r + (p * r * square + n * LN2_LOW - F32(0.5) * square) + n * LN2_HIGH


@intrinsic
def bits(typing_context, x):
    """Return the bits of a float32 as an int32."""

    def generate(context, builder, signature, values):
        return builder.bitcast(values[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def from_bits(typing_context, x):
    """Return the float32 of these bits."""

    def generate(context, builder, signature, values):
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def as_number(typing_context, stored):
    """Return a stored number to calculate with: float16 (stored as int16) and bfloat16 (as uint16) as float32."""

    def from_half(context, builder, signature, values):
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    def from_bfloat(context, builder, signature, values):
        wide = builder.zext(values[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    def same(context, builder, signature, values):
        return values[0]

    if stored == types.int16:
        return types.float32(stored), from_half
    if stored == types.uint16:
        return types.float32(stored), from_bfloat
    return stored(stored), same


@intrinsic
def as_stored(typing_context, number, like):
    """Return a number as `as_number` takes it, rounded to the nearest, of equal ones the even; `like` has the type."""

    def to_half(context, builder, signature, values):
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

    def to_bfloat(context, builder, signature, values):
        integer = ir.IntType(32)
        raw = builder.bitcast(values[0], integer)
        upper = builder.lshr(raw, ir.Constant(integer, 16))
        odd = builder.and_(upper, ir.Constant(integer, 1))
        rounded = builder.add(raw, builder.add(odd, ir.Constant(integer, 0x7FFF)))
        nan = builder.fcmp_unordered("uno", values[0], values[0])
        quiet = builder.or_(upper, ir.Constant(integer, 0x40))
        chosen = builder.select(nan, quiet, builder.lshr(rounded, ir.Constant(integer, 16)))
        return builder.trunc(chosen, ir.IntType(16))

    def same(context, builder, signature, values):
        return values[0]

    generators = {types.int16: to_half, types.uint16: to_bfloat}
    return like(number, like), generators.get(like, same)
