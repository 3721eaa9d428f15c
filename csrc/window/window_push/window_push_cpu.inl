// What a new row of the window needs before its products: is it finite, and what is it when rounded
// to the window's format. Two reads and one write of d entries, 1/m of what the products read.

template <typename V>
Magnitude vector_magnitude(const V* v, int64_t cols) {
  f64v largest = {}, squares = {};
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    const f64v x = load(v + j), size = magnitudes(x);
    largest = size > largest ? size : largest;
    squares += x * x;
  }
  double most = 0, sum = lane_sum(squares);
  for (int64_t i = 0; i < kLanes; ++i) most = largest[i] > most ? largest[i] : most;
  for (; j < cols; ++j) {
    const double x = v[j];
    most = std::fabs(x) > most ? std::fabs(x) : most;
    sum += x * x;
  }
  return {most, sum};
}

MFAC_INLINE void round_to(float x, float& y) { y = x; }
MFAC_INLINE void round_to(double x, double& y) { y = x; }
MFAC_INLINE void round_to(double x, float& y) { y = float(x); }
MFAC_INLINE void round_to(float x, double& y) { y = x; }

// Round to nearest, ties to even.
MFAC_INLINE void round_to(float x, bf16& y) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  y.bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

MFAC_INLINE void round_to(float x, f16& y) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), sign = bits >> 16 & 0x8000;
  const float size = __builtin_fabsf(x);
  // Above 2⁻¹⁴ the mantissa is cut to 10 bits in place. Below, adding ½ leaves the value in units
  // of 2⁻²⁴ in the low bits.
  const uint32_t of_size = __builtin_bit_cast(uint32_t, size);
  const uint32_t normal = (of_size - (112u << 23) + 0xfff + ((of_size >> 13) & 1)) >> 13;
  const uint32_t subnormal = __builtin_bit_cast(uint32_t, size + 0.5f) - 0x3f000000u;
  y.bits = uint16_t(sign | (size < 0x1p-14f ? subnormal : normal));
}

// Doubles reach the 16-bit formats by way of float32, as gradients are no finer than that where
// such a window is used.
MFAC_INLINE void round_to(double x, bf16& y) { round_to(float(x), y); }
MFAC_INLINE void round_to(double x, f16& y) { round_to(float(x), y); }

template <typename T, typename V>
void round_row(const V* v, int64_t cols, T* row, V* rounded) {
  for (int64_t j = 0; j < cols; ++j) {
    T x;
    round_to(v[j], x);
    row[j] = x;
    rounded[j] = V(widen(x));
  }
}

// row[j] <- v[j]/scale rounded to nearest, with the least scale for which |row[j]| <= 127 that has
// 16 significant bits: scale·row[j] is then a float32 number, so that the row stored has an exact
// float32 value. The scale, 0 for zeros.
float quantize_row(const float* v, int64_t cols, int8_t* row) {
  float most = 0;
  for (int64_t j = 0; j < cols; ++j) most = __builtin_fabsf(v[j]) > most ? __builtin_fabsf(v[j]) : most;
  const uint32_t bits = __builtin_bit_cast(uint32_t, most / 127.0f);
  const float scale = __builtin_bit_cast(float, (bits + 0xff) & ~0xffu);
  // Below this the quotients would not be normal numbers; such rows are as good as zero.
  const bool vanishes = !(scale > 0x1p-100f);
  const float inverse = vanishes ? 0 : 1 / scale;
  for (int64_t j = 0; j < cols; ++j) {
    const float shifted = v[j] * inverse + 0x1.8p23f;  // the sum is rounded to an integer, ties to even
    row[j] = int8_t(shifted - 0x1.8p23f);
  }
  return vanishes ? 0 : scale;
}

// Σ_j a[j]·b[j], exact: at most 1024 · 128 · 255 in magnitude.
MFAC_INLINE int32_t int8_dot(const int8_t* a, const int8_t* b, int64_t n) {
  int32_t sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += int32_t(a[j]) * int32_t(b[j]);
  return sum;
}

#if defined(MFAC_HAS_INT16_PRODUCTS)
// Whole vectors of n rows; returns the number of columns in the vectors.
template <int n>
MFAC_INLINE int64_t int8_dot_vectors(const int8_t* window, int64_t stride, int64_t cols, const int8_t* v,
                                     int32_t* out) {
  i32w sum[n] = {};
  int64_t j = 0;
  for (; j + 64 <= cols; j += 64) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) prefetch_ahead(window + i * stride + j);
    for (int64_t k = j; k < j + 64; k += 4 * kLanes) {
      const i32w y = load_int16(v + k);
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) sum[i] = add_int16_products(sum[i], load_int16(window + i * stride + k), y);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) out[i] = lane_sum(sum[i]);
  return j;
}
#endif

void int8_dot_rows(const int8_t* window, int64_t stride, int64_t rows, int64_t cols, const int8_t* v, int32_t* out) {
  int64_t r = 0;
#if defined(MFAC_HAS_INT16_PRODUCTS)
  for (; r + 8 <= rows; r += 8) {
    const int64_t done = int8_dot_vectors<8>(window + r * stride, stride, cols, v, out + r);
    for (int i = 0; i < 8; ++i) out[r + i] += int8_dot(window + (r + i) * stride + done, v + done, cols - done);
  }
#endif
  for (; r < rows; ++r) out[r] = int8_dot(window + r * stride, v, cols);
}

template <typename V>
constexpr void fill(MagnitudeKernels<V>& kernels) {
  kernels = {vector_magnitude<V>};
}
template <typename T, typename V>
constexpr void fill(RoundKernels<T, V>& kernels) {
  kernels = {round_row<T, V>};
}
constexpr void fill(Int8PushKernels& kernels) { kernels = {quantize_row, int8_dot_rows}; }
