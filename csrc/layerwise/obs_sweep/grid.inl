// The nearest value of a uniform grid, (level - zero)·scale with whole levels from 0 to `levels`.

// x to the nearest integer, ties to even: where doubles lie 1 apart. What is above 2⁵¹ moves by its
// own rounding, and every grid ends below.
MFAC_INLINE f64v round_half_even(f64v x) {
  constexpr double kUnit = 0x1.8p52;
  return (x + kUnit) - kUnit;
}

MFAC_INLINE f64v quantized(f64v x, f64v scale, f64v zero, double levels) {
  const f64v none = {}, most = none + levels;
  f64v level = round_half_even(x / scale) + zero;
  level = level < none ? none : level;
  level = level > most ? most : level;
  return (level - zero) * scale;
}
