//! What is read of a source counts once, in the code as it is compiled and linked here.
//!
//! The source's page is not readable. Whatever instruction reads it faults; the handler
//! makes the page readable, lets the processor execute that one instruction (the trap
//! flag), and closes the page again. So every read is seen, one by one, and what it finds
//! can be chosen: another mapping of the same memory plays the host.
//!
//! The host of these tests shows each byte of the ciphertext as it was sealed to one
//! read, and something else, which never stays the same, at every other time. If the
//! panel opens to what was sealed, then no byte counted at two times. This is more than
//! that no address is read twice, which the C library's `memcpy` does for lengths that
//! are no multiple of its vectors, and less where it does not matter: a read whose value
//! is overwritten.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

use super::*;

/// Bytes of the page that is watched.
const PAGE: usize = 4096;

/// Reads of one opening, at most: the implementations without vectors read bytes.
const MOST_READS: usize = 2 * PAGE;

/// Bytes that one instruction reads, at most.
const WIDEST: usize = 64;

/// In the place of a read: every one of them, and between them too.
const ALWAYS: usize = usize::MAX;

/// The trap flag of the processor's flags: a trap after the next instruction.
const TRAP_FLAG: i64 = 0x100;

/// What the signal handlers know.
struct Watch {
    /// Where the page lies for the code that is watched.
    page: *mut u8,
    /// Where it lies for the host.
    host: *mut u8,
    sealed: Vec<u8>,
    /// Which read is shown each byte as it was sealed; every read if there are none.
    shown: Option<Vec<usize>>,
    /// Where the reads began.
    reads: Vec<usize>,
    /// How many there were, even if there is no room to note them.
    count: usize,
}

static WATCH: AtomicPtr<Watch> = AtomicPtr::new(std::ptr::null_mut());

impl Watch {
    /// Shows the bytes that belong to a read, if one is under way.
    fn show(&mut self, read: Option<usize>) {
        let Some(shown) = &self.shown else { return };
        for (place, (&sealed, &owner)) in self.sealed.iter().zip(shown).enumerate() {
            // Never what it is, and never what it was the time before.
            let wrong = (self.count * 2 + usize::from(read.is_none())) % 255 + 1;
            let byte = if owner == ALWAYS || read == Some(owner) {
                sealed
            } else {
                sealed ^ wrong as u8
            };
            // SAFETY: the host's mapping is as long as the page.
            unsafe { self.host.add(place).write_volatile(byte) };
        }
    }

    fn protect(&self, protection: i32) {
        // SAFETY: the page is ours. A failure would be a fault without end, or none.
        unsafe { libc::mprotect(self.page.cast(), PAGE, protection) };
    }
}

/// The flags that the processor goes on with.
fn flags(context: *mut c_void) -> *mut i64 {
    // SAFETY: what a handler with SA_SIGINFO gets.
    unsafe {
        &raw mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_EFL as usize]
    }
}

/// An instruction is about to read the page.
extern "C" fn fault(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: null, or set by the only test that runs, whose thread this is.
    let watch = unsafe { WATCH.load(Ordering::Relaxed).as_mut() };
    // SAFETY: the system's description of this fault.
    let address = unsafe { (*info).si_addr() }.addr();
    let place = watch
        .as_ref()
        .map(|watch| address.wrapping_sub(watch.page.addr()));
    let (Some(watch), Some(place @ 0..PAGE)) = (watch, place) else {
        // Some other fault: it happens again, and ends the process.
        // SAFETY: puts the usual handler back.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    if watch.reads.len() < watch.reads.capacity() {
        watch.reads.push(place);
    }
    watch.show(Some(watch.count));
    watch.count += 1;
    watch.protect(libc::PROT_READ);
    // SAFETY: the context is this handler's own.
    unsafe { *flags(context) |= TRAP_FLAG };
}

/// It has read.
extern "C" fn trap(_: i32, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: as in `fault`.
    if let Some(watch) = unsafe { WATCH.load(Ordering::Relaxed).as_mut() } {
        watch.protect(libc::PROT_NONE);
        watch.show(None);
    }
    // SAFETY: the context is this handler's own.
    unsafe { *flags(context) &= !TRAP_FLAG };
}

/// The process's handlers, until it is dropped.
struct Handlers([(i32, libc::sigaction); 2]);

impl Handlers {
    fn new() -> Self {
        type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);
        let install = |signal, handler: Handler| {
            let mut before = MaybeUninit::uninit();
            // SAFETY: all zero is a valid value; both handlers do only what handlers may.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                assert_eq!(
                    libc::sigaction(signal, &raw const action, before.as_mut_ptr()),
                    0
                );
                (signal, before.assume_init())
            }
        };
        Self([install(libc::SIGSEGV, fault), install(libc::SIGTRAP, trap)])
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        for (signal, before) in &self.0 {
            // SAFETY: what was there before.
            unsafe { libc::sigaction(*signal, before, std::ptr::null_mut()) };
        }
    }
}

/// How often bytes of the ciphertext count.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Once,
    /// The panel opens for no choice of the one read that is shown this byte.
    MoreThanOnce {
        place: usize,
    },
    /// Each byte could count once, but not all of them in one opening.
    MoreThanOnceTogether,
}

/// A page of ciphertext under watch.
struct Watched<'a> {
    cipher: &'a Cipher,
    region: &'a Region,
    tag: [u8; TAG],
    panel: Vec<u8>,
    /// The same place in memory for every opening: how the C library copies depends on
    /// how it is aligned.
    out: Vec<u8>,
    watch: Box<Watch>,
}

impl Watched<'_> {
    /// Whether the panel opens to what was sealed, if each read is shown the bytes that
    /// are its own.
    fn opens(&mut self, shown: Option<Vec<usize>>) -> bool {
        let length = self.panel.len();
        self.out.fill(0);
        self.watch.shown = shown;
        self.watch.reads.clear();
        self.watch.count = 0;
        self.watch.show(None);
        self.watch.protect(libc::PROT_NONE);
        WATCH.store(&raw mut *self.watch, Ordering::Relaxed);
        let source = self.region.source(0, length).unwrap();
        let opened = self
            .cipher
            .open(source, 1, b"layer 1", &self.tag, &mut self.out);
        WATCH.store(std::ptr::null_mut(), Ordering::Relaxed);
        self.watch.protect(libc::PROT_READ | libc::PROT_WRITE);
        assert!(self.watch.count <= MOST_READS, "too many reads to note");
        opened && self.out == self.panel
    }

    fn reading(&mut self) -> Reading {
        let length = self.panel.len();
        assert!(self.opens(None), "with nobody interfering");
        let reads = self.watch.reads.clone();
        assert!(!reads.is_empty(), "reads are seen");
        let before = |place: usize| {
            let mut owners: Vec<usize> = (0..reads.len())
                .filter(|&read| (place.saturating_sub(WIDEST - 1)..=place).contains(&reads[read]))
                .collect();
            // The nearest one first.
            owners.sort_by_key(|&read| place - reads[read]);
            owners
        };
        let nearest = (0..length)
            .map(|place| before(place).first().copied().unwrap_or(0))
            .collect();
        if self.opens(Some(nearest)) {
            return Reading::Once;
        }
        // Reads that overlap: for each byte the one that counts is searched for, while
        // all other bytes are always shown.
        let mut owners = Vec::with_capacity(length);
        for place in 0..length {
            let owner = before(place).into_iter().find(|&read| {
                let mut shown = vec![ALWAYS; length];
                shown[place] = read;
                self.opens(Some(shown))
            });
            match owner {
                Some(owner) => owners.push(owner),
                None => return Reading::MoreThanOnce { place },
            }
        }
        if self.opens(Some(owners)) {
            Reading::Once
        } else {
            Reading::MoreThanOnceTogether
        }
    }
}

/// How a panel of `length` bytes is read when `cipher` opens it.
fn reading(cipher: &Cipher, length: usize) -> Reading {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let region = Region::new(PAGE).unwrap();
    let panel: Vec<u8> = (0..length).map(|place| (place * 7) as u8).collect();
    let mut target = region.target(0, length).unwrap();
    let tag = cipher.seal(&mut target, 1, b"layer 1", &panel).unwrap();
    let mut sealed = vec![0; length];
    copy_once(region.source(0, length).unwrap(), &mut sealed);
    // SAFETY: a new mapping at an address that the system chooses.
    let host = unsafe {
        let both = ProtFlags::READ | ProtFlags::WRITE;
        rustix::mm::mmap(
            std::ptr::null_mut(),
            PAGE,
            both,
            MapFlags::SHARED,
            &region.file,
            0,
        )
    };
    let host = host.unwrap();
    let watch = Box::new(Watch {
        page: region.start.as_ptr(),
        host: host.cast(),
        sealed,
        shown: None,
        reads: Vec::with_capacity(MOST_READS),
        count: 0,
    });
    let handlers = Handlers::new();
    let reading = Watched {
        cipher,
        region: &region,
        tag,
        panel,
        out: vec![0; length],
        watch,
    }
    .reading();
    drop(handlers);
    // SAFETY: the mapping is ours, and nobody uses it any more.
    unsafe { rustix::mm::munmap(host, PAGE).unwrap() };
    reading
}

/// Shorter than a block, whole blocks, and a round of the unrolled loops with a rest.
const LENGTHS: [usize; 11] = [1, 15, 16, 31, 32, 64, 100, 128, 300, 512, 2048];

/// One and two rounds of the longest unrolled loop, of 512 bytes, with a rest that is no
/// multiple of anything.
const WITH_REST: [usize; 2] = [717, 1125];

fn aegis(kind: CipherKind, opening: Option<Open>) -> Cipher {
    let mut cipher = Cipher::new(kind, &[7; 16]);
    if let (Cipher::Aegis { open, .. }, Some(opening)) = (&mut cipher, opening) {
        *open = opening;
    }
    cipher
}

#[test]
fn every_cipher_takes_each_byte_once() {
    for kind in CipherKind::ALL {
        let cipher = Cipher::new(kind, &[7; 32][..kind.key_length()]);
        for length in LENGTHS {
            assert_eq!(
                reading(&cipher, length),
                Reading::Once,
                "{kind}, {length} bytes"
            );
        }
    }
}

/// What the library chooses among; `aegis_init` takes one for this processor.
#[repr(C)]
struct Implementation {
    seal: Seal,
    open: Open,
}

unsafe extern "C" {
    static libaegis_aegis128l_aesni_implementation: Implementation;
    static libaegis_aegis128x2_aesni_implementation: Implementation;
    static libaegis_aegis128x2_avx2_implementation: Implementation;
    static libaegis_aegis128x4_aesni_implementation: Implementation;
    static libaegis_aegis128x4_avx2_implementation: Implementation;
    static libaegis_aegis128x4_avx512_implementation: Implementation;
}

#[test]
#[allow(clippy::print_stdout, reason = "says that a part was skipped")]
fn every_implementation_for_other_processors_takes_each_byte_once() {
    use CipherKind::{Aegis128L, Aegis128X2, Aegis128X4};
    let aes = is_x86_feature_detected!("aes") && is_x86_feature_detected!("avx");
    let vectors = aes && is_x86_feature_detected!("vaes") && is_x86_feature_detected!("avx2");
    let wide = vectors && is_x86_feature_detected!("avx512f");
    // SAFETY: constants of the library, whose first two members are these.
    let all = unsafe {
        [
            (
                Aegis128L,
                "aesni",
                aes,
                &libaegis_aegis128l_aesni_implementation,
            ),
            (
                Aegis128X2,
                "aesni",
                aes,
                &libaegis_aegis128x2_aesni_implementation,
            ),
            (
                Aegis128X2,
                "avx2",
                vectors,
                &libaegis_aegis128x2_avx2_implementation,
            ),
            (
                Aegis128X4,
                "aesni",
                aes,
                &libaegis_aegis128x4_aesni_implementation,
            ),
            (
                Aegis128X4,
                "avx2",
                vectors,
                &libaegis_aegis128x4_avx2_implementation,
            ),
            (
                Aegis128X4,
                "avx512",
                wide,
                &libaegis_aegis128x4_avx512_implementation,
            ),
        ]
    };
    for (kind, name, available, implementation) in all {
        if !available {
            println!("skipped: this processor has no {name}");
            continue;
        }
        let cipher = aegis(kind, Some(implementation.open));
        for length in LENGTHS.into_iter().chain(WITH_REST) {
            assert_eq!(
                reading(&cipher, length),
                Reading::Once,
                "{kind} with {name}, {length} bytes"
            );
        }
    }
}

/// Checks the tag first and decrypts then, as a library may for the sake of its callers.
unsafe extern "C" fn open_in_two_passes(
    plaintext: *mut u8,
    ciphertext: *const u8,
    length: usize,
    tag: *const u8,
    tag_length: usize,
    associated: *const u8,
    associated_length: usize,
    nonce: *const u8,
    key: *const u8,
) -> c_int {
    let pass = |plaintext| {
        // SAFETY: the caller's promise; no plaintext means that there is only a check.
        unsafe {
            aegis128l_decrypt_detached(
                plaintext,
                ciphertext,
                length,
                tag,
                tag_length,
                associated,
                associated_length,
                nonce,
                key,
            )
        }
    };
    match pass(std::ptr::null_mut()) {
        0 => {
            pass(plaintext);
            0
        }
        refused => refused,
    }
}

/// Looks at one byte of the ciphertext again when everything is done.
unsafe extern "C" fn open_and_look_again(
    plaintext: *mut u8,
    ciphertext: *const u8,
    length: usize,
    tag: *const u8,
    tag_length: usize,
    associated: *const u8,
    associated_length: usize,
    nonce: *const u8,
    key: *const u8,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let before = ciphertext.add(40).read_volatile();
        let outcome = aegis128l_decrypt_detached(
            plaintext,
            ciphertext,
            length,
            tag,
            tag_length,
            associated,
            associated_length,
            nonce,
            key,
        );
        *plaintext.add(40) ^= before ^ ciphertext.add(40).read_volatile();
        outcome
    }
}

#[test]
fn a_second_read_is_noticed() {
    let two_passes = aegis(CipherKind::Aegis128L, Some(open_in_two_passes));
    assert_eq!(
        reading(&two_passes, 300),
        Reading::MoreThanOnce { place: 0 }
    );
    let again = aegis(CipherKind::Aegis128L, Some(open_and_look_again));
    assert_eq!(reading(&again, 300), Reading::MoreThanOnce { place: 40 });
}
