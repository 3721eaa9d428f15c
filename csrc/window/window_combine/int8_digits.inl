// window_combine for int8 rows in integers: with VNNI 1.3 cycles for 8 entries, where widening them
// to float64 takes 2.7.
//
// The coefficients of a tile of kScaleColumns columns are written in fixed point, as four digits of
// 14 bits with a sign. A multiplication takes a pair of rows times one digit; sums over kDigitRows
// rows are exact in int32. The only error is the fixed point's, 2⁻⁵⁴ of the tile's largest
// coefficient, and the rounding of the result.
//
// Layouts. digits[k][r]: the digits of rows r and r + 1 side by side, the 32 bits that a
// multiplication takes. sums[g][k][h]: a vector of int32 for digit k of the kDigitColumns columns
// of group g. Rows are interleaved within 128 bits, so that quarter q of a vector with h = 0 holds
// columns 8q to 8q + 3, with h = 1 columns 8q + 4 to 8q + 7.
#if defined(MFAC_HAS_INT16_PRODUCTS)

constexpr int kDigits = 4, kDigitBits = 14, kPointBits = kDigits * kDigitBits - 2;
constexpr int64_t kDigitRows = 256;  // |digit| <= 2¹³ and |entry| <= 2⁷: sums stay below 2²⁸
constexpr int64_t kDigitColumns = 4 * kLanes;

// digits[k][r] <- digit k of c[r], least first; returns what a unit is worth: NaN if a coefficient
// is not finite.
double to_digits(const double* c, int64_t rows, int16_t (&digits)[kDigits][kDigitRows]) {
  double most = 0, zero = 0;
  for (int64_t r = 0; r < rows; ++r) {
    most = __builtin_fabs(c[r]) > most ? __builtin_fabs(c[r]) : most;
    zero += 0 * c[r];  // NaN where c[r] is not finite
  }
  __builtin_memset(digits, 0, sizeof(digits));
  if (zero != 0 || most < 0x1p-960) return zero;  // NaN, or as good as zero
  int exponent;
  std::frexp(most, &exponent);
  const double units = std::ldexp(1.0, kPointBits - exponent);
  constexpr int64_t kHalf = int64_t{1} << (kDigitBits - 1);
  for (int64_t r = 0; r < rows; ++r) {
    int64_t rest = int64_t(__builtin_rint(c[r] * units));
    for (int k = 0; k < kDigits; ++k) {
      const int64_t digit = k + 1 < kDigits ? ((rest + kHalf) & (2 * kHalf - 1)) - kHalf : rest;
      digits[k][r] = int16_t(digit);
      rest = (rest - digit) >> kDigitBits;
    }
  }
  return std::ldexp(1.0, exponent - kPointBits);
}

// sums[j / kDigitColumns] += the digits of eight coefficients times eight rows.
MFAC_INLINE void add_eight_rows(const int16_t (&digits)[kDigits][kDigitRows], int64_t row, const int8_t* x,
                                int64_t stride, int64_t cols, i32w (*sums)[kDigits][2]) {
  i32w c[4][kDigits];
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
#pragma GCC unroll 4
    for (int k = 0; k < kDigits; ++k) c[p][k] = load_bits<int32_t>(&digits[k][row + 2 * p]) - i32w{};
  }
  for (int64_t j = 0; j < cols; j += kDigitColumns, ++sums) {
    i32w sum[kDigits][2];
#pragma GCC unroll 4
    for (int k = 0; k < kDigits; ++k) sum[k][0] = (*sums)[k][0], sum[k][1] = (*sums)[k][1];
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      const int8_t *upper = x + 2 * p * stride + j, *lower = upper + stride;
      if (j % 64 == 0) prefetch_ahead(upper), prefetch_ahead(lower);
      const i32w a = load_int16(upper), b = load_int16(lower);
      const i32w low = interleave_low(a, b), high = interleave_high(a, b);
#pragma GCC unroll 4
      for (int k = 0; k < kDigits; ++k) {
        sum[k][0] = add_int16_products(sum[k][0], low, c[p][k]);
        sum[k][1] = add_int16_products(sum[k][1], high, c[p][k]);
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < kDigits; ++k) (*sums)[k][0] = sum[k][0], (*sums)[k][1] = sum[k][1];
  }
}

// A digit of columns [column, column + kLanes) of a group, in order again.
MFAC_INLINE i32v digit_of(const i32w (&halves)[2], int64_t column) {
  const auto four = [&](int64_t first) __attribute__((always_inline)) {
    return load_bits<i32q>(reinterpret_cast<const char*>(&halves[first % 8 / 4]) + first / 8 * sizeof(i32q));
  };
#if MFAC_LANES == 8
  return __builtin_shufflevector(four(column), four(column + 4), 0, 1, 2, 3, 4, 5, 6, 7);
#else
  return four(column);
#endif
}

// out[j] += unit·Σ_k 2^(14k)·(digit k of column j)
MFAC_INLINE void add_digits(const i32w (*sums)[kDigits][2], double unit, int64_t cols, double* out) {
  for (int64_t j = 0; j < cols; j += kDigitColumns, ++sums) {
#pragma GCC unroll 4
    for (int64_t column = 0; column < kDigitColumns; column += kLanes) {
      f64v total = {};
#pragma GCC unroll 4
      for (int k = kDigits; k-- > 0;) total = total * double(1 << kDigitBits) + widen(digit_of((*sums)[k], column));
      store(out + j + column, load(out + j + column) + unit * total);
    }
  }
}

MFAC_INLINE int64_t at_most_a_tile(int64_t cols) { return cols < kScaleColumns ? cols : kScaleColumns; }

// out[j] += Σ_r coefficients[j / kScaleColumns][r]·x[r, j], the coefficients of two tiles `apart`
// entries apart; rows in eights, columns in whole kDigitColumns, and two float64 of scratch memory
// for each.
MFAC_INLINE void add_rows_by_digits(const double* coefficients, int64_t apart, const int8_t* x, int64_t stride,
                                    int64_t rows, int64_t cols, double* scratch, double* out) {
  typedef i32w Sums[kDigits][2];
  static_assert(sizeof(Sums) == 2 * sizeof(double) * kDigitColumns);
  Sums* sums = reinterpret_cast<Sums*>(scratch);
  int16_t digits[kCombineColumns / kScaleColumns][kDigits][kDigitRows];
  double units[kCombineColumns / kScaleColumns];
  for (int64_t first = 0; first < rows; first += kDigitRows) {
    const int64_t count = rows - first < kDigitRows ? rows - first : kDigitRows;
    for (int64_t j = 0; j < cols; j += kScaleColumns) {
      const int64_t t = j / kScaleColumns;
      units[t] = to_digits(coefficients + t * apart + first, count, digits[t]);
    }
    __builtin_memset(sums, 0, cols / kDigitColumns * sizeof(sums[0]));
    for (int64_t r = 0; r < count; r += 8)
      for (int64_t j = 0; j < cols; j += kScaleColumns)
        add_eight_rows(digits[j / kScaleColumns], r, x + (first + r) * stride + j, stride, at_most_a_tile(cols - j),
                       sums + j / kDigitColumns);
    for (int64_t j = 0; j < cols; j += kScaleColumns)
      add_digits(sums + j / kDigitColumns, units[j / kScaleColumns], at_most_a_tile(cols - j), out + j);
  }
}
#endif
