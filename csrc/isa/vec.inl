// Vector types of one instruction set. Included only from <isa>.cpp, after MFAC_LANES and the
// target pragma are set and after every standard header, so that no inline function of the
// standard library is ever compiled for an instruction set the machine may not have.
//
// `f64v` holds MFAC_LANES doubles. Rows of any element type are widened to it on load: every
// product in this library is a float64 product (docs/derivation.md, "Precision").

typedef double f64v __attribute__((vector_size(8 * MFAC_LANES)));
typedef float f32v __attribute__((vector_size(4 * MFAC_LANES)));

constexpr int64_t kLanes = MFAC_LANES;

#define MFAC_INLINE static inline __attribute__((always_inline))

MFAC_INLINE f64v load(const double* p) {
  f64v x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}

MFAC_INLINE f64v load(const float* p) {
  f32v x;
  __builtin_memcpy(&x, p, sizeof(x));
  return __builtin_convertvector(x, f64v);
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
  for (; j < n; ++j) s += double(a[j]) * double(b[j]);
  return s;
}

// y[j] += c·x[j]
template <typename X>
MFAC_INLINE void axpy(double c, const X* x, double* y, int64_t n) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(y + j, load(y + j) + c * load(x + j));
  for (; j < n; ++j) y[j] += c * double(x[j]);
}

// y[j] += Σ_{r<4} c[r]·x[r·stride + j]: four rows a pass, so that y is read and written once for them.
template <typename X>
MFAC_INLINE void axpy4(const double* c, const X* x, int64_t stride, double* y, int64_t n) {
  const X *x0 = x, *x1 = x + stride, *x2 = x + 2 * stride, *x3 = x + 3 * stride;
  const double c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const f64v even = load(y + j) + c0 * load(x0 + j) + c2 * load(x2 + j);
    const f64v odd = c1 * load(x1 + j) + c3 * load(x3 + j);
    store(y + j, even + odd);
  }
  for (; j < n; ++j) y[j] += (c0 * double(x0[j]) + c2 * double(x2[j])) + (c1 * double(x1[j]) + c3 * double(x3[j]));
}

// y[j] += Σ_{r<rows} c[r]·x[r·stride + j]
template <typename X>
MFAC_INLINE void add_rows(const double* c, const X* x, int64_t stride, int64_t rows, double* y, int64_t n) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) axpy4(c + r, x + r * stride, stride, y, n);
  for (; r < rows; ++r) axpy(c[r], x + r * stride, y, n);
}
