// Sums of products in which two multiplications make room for one and two additions (Winograd's inner product, 1968):
//
//   a0·b0 + a1·b1 = (a0 + b1)(a1 + b0) - a0·a1 - b0·b1
//
// What is subtracted belongs to a alone or to b alone, so it is computed once for each of their columns, not for each
// pair of columns. It pays where additions have units of their own: on AMD's Zen 4 and later a core issues an addition
// beside every fused multiply-add, and a pair and a product in turn, two of each, do three products in the time of two.
//
// Rounding errors are relative to Σ(a² + b²), not to Σ|a·b|: both have to be scaled to norms of like size beforehand
// (docs/derivation.md, "Precision").

template <bool paired, typename C>
constexpr int64_t kSumDepth = paired ? kPairedDepth<C> : kSingleDepth;  // products of a block, as many groups as it has

// sum[r][v] += the groups of a block: one (a0 + b1)(a1 + b0) + a2·b2 each. How many products they stand for.
template <int rows, int vectors, typename V, typename C>
MFAC_INLINE int64_t add_groups(V (&sum)[rows][vectors], const C* a, int64_t a_stride, const C* b, int64_t b_stride,
                               int64_t depth) {
  // A pointer for each vector, which the compiler cannot know to be the same: it would broadcast an entry once for all
  // of them, by an instruction that takes an adder, where as an operand of the addition it is free.
  const C* a_for[vectors];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    a_for[v] = a;
    asm("" : "+r"(a_for[v]));
  }
  int64_t k = 0;
  for (; k + kPairGroup <= depth; k += kPairGroup) {
    V y[kPairGroup][vectors];
#pragma GCC unroll 3
    for (int i = 0; i < kPairGroup; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) y[i][v] = load_bits<V>(b + (k + i) * b_stride + v * (sizeof(V) / sizeof(C)));
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const C* x = a_for[v] + k * a_stride + r;
        sum[r][v] += (x[0] + y[1][v]) * (x[a_stride] + y[0][v]);
        sum[r][v] += x[2 * a_stride] * y[2][v];
      }
    }
  }
  return k;
}

// total[r][v] += Σ_{k<depth} a[k·a_stride + r]·b[k·b_stride + v·lanes ...], kSumDepth products summed before their sum
// is added: no chain of roundings is longer than that and one for each such sum. `paired`: and besides, the pair
// sums of a and of b.
template <bool paired, int rows, int vectors, typename V, typename C>
MFAC_INLINE void add_sums_of_products(V (&total)[rows][vectors], const C* a, int64_t a_stride, const C* b,
                                      int64_t b_stride, int64_t depth) {
  constexpr int64_t kBlock = kSumDepth<paired, C>;
  for (int64_t k = 0; k < depth; k += kBlock) {
    V sum[rows][vectors] = {};
    const int64_t end = depth < k + kBlock ? depth : k + kBlock;
    int64_t from = k;
    if constexpr (paired) from += add_groups(sum, a + k * a_stride, a_stride, b + k * b_stride, b_stride, end - k);
    add_products(sum, a + from * a_stride, a_stride, b + from * b_stride, b_stride, end - from);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) total[r][v] += sum[r][v];
    }
  }
}

// sums[j] += a0·a1 over the pairs of column j of a [depth][width], in float64
template <int64_t width, typename C>
void add_pair_sums(const C* a, int64_t depth, double* sums) {
  static_assert(width % kLanes == 0);
  f64v sum[width / kLanes] = {};
  for (int64_t block = 0; block < depth; block += kPairedDepth<C>) {
    const int64_t end = depth < block + kPairedDepth<C> ? depth : block + kPairedDepth<C>;
    for (int64_t k = block; k + kPairGroup <= end; k += kPairGroup) {
#pragma GCC unroll 8
      for (int64_t v = 0; v < width / kLanes; ++v)
        sum[v] += load(a + k * width + v * kLanes) * load(a + (k + 1) * width + v * kLanes);
    }
  }
  for (int64_t v = 0; v < width / kLanes; ++v) store(sums + v * kLanes, load(sums + v * kLanes) + sum[v]);
}

// The power of two that brings a norm into [√½, √2), given its square; of a square below C's normal numbers the largest
// that there is for C's squares, of one that is not finite the smallest.
MFAC_INLINE float balancing_scale(float square) {
  const uint32_t exponent = __builtin_bit_cast(uint32_t, square) >> 23;  // biased
  return __builtin_bit_cast(float, (190 - (exponent >> 1)) << 23);
}
MFAC_INLINE double balancing_scale(double square) {
  const uint64_t exponent = __builtin_bit_cast(uint64_t, square) >> 52;
  return __builtin_bit_cast(double, (1534 - (exponent >> 1)) << 52);
}
