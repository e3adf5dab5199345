//! Vectors of `f32`, one implementation for each instruction set.
//!
//! Every method is inlined into a function that enables the instructions, so that a
//! kernel is written once and compiled for each of them.

/// A vector of [`Self::WIDTH`] numbers.
///
/// # Safety
/// All methods need the implementation's instructions ([`crate::Isa`] proves that
/// they are there), and pointers valid for `WIDTH` numbers, at any alignment.
pub(crate) unsafe trait Vector: Copy {
    const WIDTH: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the instructions do so.
    unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self;
    /// The larger of both; `self` where either is not a number.
    unsafe fn at_least(self, bound: Self) -> Self;
    /// The smaller of both; `self` where either is not a number.
    unsafe fn at_most(self, bound: Self) -> Self;
}

/// For processors without a kernel of their own; compilers find what vectors there are.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

// SAFETY: needs no particular instructions, and reads and writes 8 numbers.
unsafe impl Vector for Portable {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller passes a pointer to 8 numbers; arrays of `f32` may be
        // read unaligned.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }
    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            fused(self.0[lane], factor.0[lane], addend.0[lane])
        }))
    }
    #[inline(always)]
    unsafe fn at_least(self, bound: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            if self.0[lane] < bound.0[lane] {
                bound.0[lane]
            } else {
                self.0[lane]
            }
        }))
    }
    #[inline(always)]
    unsafe fn at_most(self, bound: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            if self.0[lane] > bound.0[lane] {
                bound.0[lane]
            } else {
                self.0[lane]
            }
        }))
    }
}

/// `AArch64` always has the fused instruction; on x86-64 without it a library call
/// would stand in, a hundred times as slow.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps,
        _mm256_min_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::Vector;

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    /// AVX-512F.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    macro_rules! vector {
        ($name:ident, $width:literal, $set:ident, $load:ident, $store:ident, $add:ident,
         $fma:ident, $max:ident, $min:ident) => {
            // SAFETY: the trait's contract is that of the intrinsics: the instructions
            // are there, pointers are valid for the width, at any alignment.
            unsafe impl Vector for $name {
                const WIDTH: usize = $width;

                #[inline(always)]
                unsafe fn splat(value: f32) -> Self {
                    // SAFETY: see the implementation.
                    Self(unsafe { $set(value) })
                }
                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: see the implementation.
                    Self(unsafe { $load(from) })
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: see the implementation.
                    unsafe { $store(to, self.0) }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: see the implementation.
                    Self(unsafe { $add(self.0, other.0) })
                }
                #[inline(always)]
                unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self {
                    // SAFETY: see the implementation.
                    Self(unsafe { $fma(self.0, factor.0, addend.0) })
                }
                // The instructions return their second operand where one is not a
                // number.
                #[inline(always)]
                unsafe fn at_least(self, bound: Self) -> Self {
                    // SAFETY: see the implementation.
                    Self(unsafe { $max(bound.0, self.0) })
                }
                #[inline(always)]
                unsafe fn at_most(self, bound: Self) -> Self {
                    // SAFETY: see the implementation.
                    Self(unsafe { $min(bound.0, self.0) })
                }
            }
        };
    }

    vector!(
        Avx2,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps,
        _mm256_min_ps
    );
    vector!(
        Avx512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps,
        _mm512_min_ps
    );
}
