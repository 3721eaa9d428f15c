// Vector types of one instruction set. Included only from <isa>.cpp, after MFAC_LANES and the
// target pragma are set and after every standard header, so that no inline function of the
// standard library is ever compiled for an instruction set the machine may not have.
//
// `f64v` holds MFAC_LANES doubles. Rows of any element type are widened to it on load: products are
// float64 products, but for the float32 arithmetic that gram/ and whitened_norms/ have besides
// (docs/derivation.md, "Precision").

typedef double f64v __attribute__((vector_size(8 * MFAC_LANES)));
typedef float f32v __attribute__((vector_size(4 * MFAC_LANES)));

constexpr int64_t kLanes = MFAC_LANES;

#define MFAC_INLINE static inline __attribute__((always_inline))

MFAC_INLINE f64v load(const double* p) {
  f64v x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}

// Widening: gcc 12 takes __builtin_convertvector apart into quarters, so the instructions are
// named. The masks are full: the plain intrinsics leave a register undefined, of which gcc warns.
MFAC_INLINE f64v widen(f32v x) {
#if MFAC_LANES == 8
  return (f64v)_mm512_maskz_cvtps_pd(0xff, (__m256)x);
#elif MFAC_LANES == 4
  return (f64v)_mm256_cvtps_pd((__m128)x);
#else
  return __builtin_convertvector(x, f64v);
#endif
}

MFAC_INLINE f64v load(const float* p) {
  f32v x;
  __builtin_memcpy(&x, p, sizeof(x));
  return widen(x);
}

// The 16-bit and 8-bit formats, exactly. Integer vectors of as many lanes as f64v has.
typedef uint32_t u32v __attribute__((vector_size(4 * MFAC_LANES)));
typedef int32_t i32v __attribute__((vector_size(4 * MFAC_LANES)));
typedef uint16_t u16v __attribute__((vector_size(2 * MFAC_LANES)));
typedef int8_t i8v __attribute__((vector_size(MFAC_LANES)));

template <typename V, typename P>
MFAC_INLINE V load_bits(const P* p) {
  V x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}

MFAC_INLINE f64v load(const bf16* p) {
#if MFAC_LANES == 8
  // One permutation: every entry becomes the upper half of 32 bits, above zeros.
  const __m256i upper = _mm256_set_epi16(7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
  const __m256i entries = _mm256_castsi128_si256(load_bits<__m128i>(p));
  return widen((f32v)_mm256_maskz_permutexvar_epi16(0xaaaa, upper, entries));
#elif MFAC_LANES == 4
  return widen((f32v)((u32v)_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))) << 16));
#else
  return widen((f32v)(__builtin_convertvector(load_bits<u16v>(p), u32v) << 16));
#endif
}

// Half precision by its bits: exponent and mantissa moved into place are 2⁻¹¹² times the value,
// subnormals included.
MFAC_INLINE f64v load(const f16* p) {
#if MFAC_LANES == 8
  return widen((f32v)_mm256_cvtph_ps(load_bits<__m128i>(p)));
#elif MFAC_LANES == 4
  return widen((f32v)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  const u32v bits = __builtin_convertvector(load_bits<u16v>(p), u32v);
  const f64v magnitude = __builtin_convertvector((f32v)((bits & 0x7fff) << 13), f64v) * 0x1p112;
  const f64v sign = 1.0 - 2.0 * __builtin_convertvector(bits >> 15, f64v);
  return sign * magnitude;
#endif
}

MFAC_INLINE f64v load(const int8_t* p) {
#if MFAC_LANES == 8
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (f64v)_mm512_maskz_cvtepi32_pd(0xff, _mm256_cvtepi8_epi32(bytes));
#elif MFAC_LANES == 4
  return (f64v)_mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_loadu_si32(p)));
#else
  return __builtin_convertvector(__builtin_convertvector(load_bits<i8v>(p), i32v), f64v);
#endif
}

// 2 · kLanes entries. Of bfloat16 AVX2 takes one load and two permutations for both vectors, not
// two and a shift each.
template <typename X>
MFAC_INLINE void load_two(const X* p, f64v (&x)[2]) {
  x[0] = load(p);
  x[1] = load(p + kLanes);
}
#if MFAC_LANES == 4
MFAC_INLINE void load_two(const bf16* p, f64v (&x)[2]) {
  const __m128i entries = load_bits<__m128i>(p), zeros = _mm_setzero_si128();
  x[0] = widen((f32v)_mm_unpacklo_epi16(zeros, entries));
  x[1] = widen((f32v)_mm_unpackhi_epi16(zeros, entries));
}
#endif

// One entry of any format.
MFAC_INLINE double widen(double x) { return x; }
MFAC_INLINE double widen(float x) { return x; }
MFAC_INLINE double widen(int8_t x) { return x; }
MFAC_INLINE double widen(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
MFAC_INLINE double widen(f16 x) {
  const double magnitude = 0x1p112 * double(__builtin_bit_cast(float, uint32_t(x.bits & 0x7fff) << 13));
  return x.bits >> 15 ? -magnitude : magnitude;
}

// Asks for a line some way ahead in a stream that is read once; into L2, so that the few lines that
// a core can await in L1 are left to what is in L2 already.
MFAC_INLINE void prefetch_ahead(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + 1024, 0, 2); }

MFAC_INLINE f64v magnitudes(f64v x) {
  typedef uint64_t u64v __attribute__((vector_size(8 * MFAC_LANES)));
  return (f64v)((u64v)x & ~uint64_t{0} >> 1);
}

MFAC_INLINE void store(double* p, f64v x) { __builtin_memcpy(p, &x, sizeof(x)); }

MFAC_INLINE void store(float* p, f64v x) {
  const f32v y = __builtin_convertvector(x, f32v);
  __builtin_memcpy(p, &y, sizeof(y));
}

MFAC_INLINE double lane_sum(f64v x) {
  double s = 0;
  for (int64_t i = 0; i < kLanes; ++i) s += x[i];
  return s;
}

// Σ_j a[j]·b[j] with four independent chains.
template <typename A, typename B>
MFAC_INLINE double dot(const A* a, const B* b, int64_t n) {
  f64v s0 = {}, s1 = {}, s2 = {}, s3 = {};
  int64_t j = 0;
  for (; j + 4 * kLanes <= n; j += 4 * kLanes) {
    s0 += load(a + j) * load(b + j);
    s1 += load(a + j + kLanes) * load(b + j + kLanes);
    s2 += load(a + j + 2 * kLanes) * load(b + j + 2 * kLanes);
    s3 += load(a + j + 3 * kLanes) * load(b + j + 3 * kLanes);
  }
  for (; j + kLanes <= n; j += kLanes) s0 += load(a + j) * load(b + j);
  double s = lane_sum((s0 + s1) + (s2 + s3));
  for (; j < n; ++j) s += widen(a[j]) * widen(b[j]);
  return s;
}

// y[j] += c·x[j]
template <typename X>
MFAC_INLINE void axpy(double c, const X* x, double* y, int64_t n) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(y + j, load(y + j) + c * load(x + j));
  for (; j < n; ++j) y[j] += c * widen(x[j]);
}

// y[j] += Σ_{r<n} c[r]·x[r·stride + j]: n rows a pass, so that y is read and written once for them.
template <int n, typename X>
MFAC_INLINE void axpy_rows(const double* c, const X* x, int64_t stride, double* y, int64_t cols) {
  constexpr int64_t kStep = 64 / sizeof(X) < 2 * kLanes ? 2 * kLanes : 64 / sizeof(X);  // whole lines
  int64_t j = 0;
  for (; j + kStep <= cols; j += kStep) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) prefetch_ahead(x + i * stride + j);
    for (int64_t k = j; k < j + kStep; k += 2 * kLanes) {
      f64v a = load(y + k), b = load(y + k + kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) {
        f64v entries[2];
        load_two(x + i * stride + k, entries);
        a += c[i] * entries[0];
        b += c[i] * entries[1];
      }
      store(y + k, a);
      store(y + k + kLanes, b);
    }
  }
  for (; j < cols; ++j) {
    double sum = y[j];
    for (int i = 0; i < n; ++i) sum += c[i] * widen(x[i * stride + j]);
    y[j] = sum;
  }
}

// y[j] += Σ_{r<rows} c[r]·x[r·stride + j]
template <typename X>
MFAC_INLINE void add_rows(const double* c, const X* x, int64_t stride, int64_t rows, double* y, int64_t n) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) axpy_rows<8>(c + r, x + r * stride, stride, y, n);
  for (; r + 2 <= rows; r += 2) axpy_rows<2>(c + r, x + r * stride, stride, y, n);
  for (; r < rows; ++r) axpy(c[r], x + r * stride, y, n);
}

// Products of 16-bit integers, two of them added in 32 bits, which AVX2 and AVX-512 have. i32w: as
// many bytes as f64v.
#if MFAC_LANES >= 4
#define MFAC_HAS_INT16_PRODUCTS
typedef int32_t i32w __attribute__((vector_size(8 * MFAC_LANES)));
typedef int32_t i32q __attribute__((vector_size(16)));

MFAC_INLINE f64v widen(i32v x) {
#if MFAC_LANES == 8
  return (f64v)_mm512_maskz_cvtepi32_pd(0xff, (__m256i)x);
#else
  return (f64v)_mm256_cvtepi32_pd((__m128i)x);
#endif
}

// 4 · kLanes bytes as 16-bit integers
MFAC_INLINE i32w load_int16(const int8_t* p) {
#if MFAC_LANES == 8
  return (i32w)_mm512_cvtepi8_epi16(load_bits<__m256i>(p));
#else
  return (i32w)_mm256_cvtepi8_epi16(load_bits<__m128i>(p));
#endif
}

// 16-bit integers of a and b in turn, of the lower and of the upper half of every 128 bits
MFAC_INLINE i32w interleave_low(i32w a, i32w b) {
#if MFAC_LANES == 8
  return (i32w)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
#else
  return (i32w)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b);
#endif
}
MFAC_INLINE i32w interleave_high(i32w a, i32w b) {
#if MFAC_LANES == 8
  return (i32w)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
#else
  return (i32w)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b);
#endif
}

// sum[i] + a[2i]·b[2i] + a[2i + 1]·b[2i + 1]
MFAC_INLINE i32w add_int16_products(i32w sum, i32w a, i32w b) {
#if MFAC_LANES == 8
  return (i32w)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
  return sum + (i32w)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}

MFAC_INLINE int32_t lane_sum(i32w x) {
  i32q quarter[sizeof(x) / sizeof(i32q)], sum = {};
  __builtin_memcpy(quarter, &x, sizeof(x));
#pragma GCC unroll 4
  for (const i32q& q : quarter) sum += q;
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
#endif
