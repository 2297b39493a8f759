//! An allocator that remembers the largest piece that a thread asked for: an input of a few bytes that claims to have
//! gigabytes must be refused before room is made for them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Most bytes that a target may take in one piece. The largest that is meant are the frames of a network card and unfolded
/// log bundles, 8 MiB each in a buffer that grows by doubling.
pub const LIMIT: usize = 32 << 20;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, measured.
#[derive(Debug)]
pub struct Meter;

/// Forgets what this thread asked for so far.
pub fn reset() {
    LARGEST.set(0);
}

/// The largest piece that this thread asked for since [`reset`], in bytes; 0 if [`Meter`] is not the allocator.
#[must_use]
pub fn largest() -> usize {
    LARGEST.get()
}

fn note(bytes: usize) {
    // A thread that ends frees and takes memory when its variables are gone already.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: every call goes to the system's allocator as it came; taking a note allocates nothing.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the rules of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the rules of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller keeps the rules of `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the rules of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
