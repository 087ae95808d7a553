// sigmoid and tanh on vectors, to 2 ulp or so, for every input: NaN stays NaN, infinities saturate. Both rest on
// e^x = 2^n (1 + p) with p = e^r - 1, |r| <= ln(2)/2, by a Taylor polynomial (remainder below half an ulp).
// Included once per instruction set inside FASTRNN_NS.

template <class C>
struct ExpTraits;
template <>
struct ExpTraits<float> {
  static constexpr float log2e = 1.44269504f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float low = -88.f;      // e^low comes out as 0
  static constexpr float tanh_one = 10.f;  // tanh rounds to 1 from here on
  static constexpr int degree = 7;
};
template <>
struct ExpTraits<double> {
  static constexpr double log2e = 1.4426950408889634, ln2_hi = 0.693147180369123816490,
                          ln2_lo = 1.90821492927058770002e-10;
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double low = -709.0;
  static constexpr double tanh_one = 20.0;
  static constexpr int degree = 13;
};

constexpr double inverse_factorial(int n) { return n <= 1 ? 1.0 : inverse_factorial(n - 1) / n; }

// r^2 (1/2! + r/3! + r^2/4! + …): e^r - 1 - r.
template <class C, int N>
struct ExpTail {
  static FASTRNN_INLINE Vec<C> sum(Vec<C> r, Vec<C> so_far) {
    const Vec<C> next = fma(so_far, r, splat<C>(C(inverse_factorial(N))));
    if constexpr (N > 2) {
      return ExpTail<C, N - 1>::sum(r, next);
    } else {
      return next;
    }
  }
};

// scale = 2^n and p = e^r - 1 with x = n ln 2 + r. x lies in [low, 0] or is NaN (p is NaN then).
template <class C>
FASTRNN_INLINE void split_exp(Vec<C> x, Vec<C>& scale, Vec<C>& p) {
  using E = ExpTraits<C>;
  const Vec<C> shifted = fma(x, splat<C>(E::log2e), splat<C>(E::magic));
  const Vec<C> n = shifted - E::magic;
  Vec<C> r = fma(n, splat<C>(-E::ln2_hi), x);
  r = fma(n, splat<C>(-E::ln2_lo), r);
  const Vec<C> tail = ExpTail<C, E::degree - 1>::sum(r, splat<C>(C(inverse_factorial(E::degree))));
  p = fma(r * r, tail, r);
  const Bits<C> power = (Bits<C>)shifted - (Bits<C>)splat<C>(E::magic) + E::bias;
  scale = (Vec<C>)(power << E::mantissa);
}

// e / (1 + e) with e = exp(-|x|) <= 1 is the smaller of sigmoid(x) and sigmoid(-x); the larger is 1 minus that, which
// rounds once where 1 / (1 + e) would round three times.
template <class C>
FASTRNN_INLINE Vec<C> sigmoid(Vec<C> x) {
  using E = ExpTraits<C>;
  Vec<C> a = x > C(0) ? -x : x, scale, p;
  a = a < E::low ? splat<C>(E::low) : a;
  split_exp<C>(a, scale, p);
  const Vec<C> e = fma(scale, p, scale), q = quotient(e, C(1) + e);
  return x > C(0) ? C(1) - q : q;
}

// tanh|x| = -m / (2 + m) with m = e - 1, e = exp(-2|x|), keeps its relative accuracy down to the smallest x; farther
// out 1 - 2 e / (1 + e) rounds less. The denominators are the same.
template <class C>
FASTRNN_INLINE Vec<C> tanh(Vec<C> x) {
  using E = ExpTraits<C>;
  const Bits<C> sign = (Bits<C>)x & (Bits<C>)splat<C>(C(-0.0));
  Vec<C> a = (Vec<C>)((Bits<C>)x ^ sign), scale, p;
  a = a > E::tanh_one ? splat<C>(E::tanh_one) : a;
  split_exp<C>(C(-2) * a, scale, p);
  const Vec<C> m = fma(scale, p, scale - C(1)), e = fma(scale, p, scale);
  const auto far = a > C(0.6);
  const Vec<C> q = quotient(far ? C(-2) * e : -m, C(1) + e);
  const Vec<C> t = far ? C(1) + q : q;
  return (Vec<C>)((Bits<C>)t ^ sign);
}
