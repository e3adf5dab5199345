//! What reading ahead must not change: answers, and the sequence of reads.

use std::os::unix::fs::FileExt;

use super::*;
use crate::cipher::CipherKind;
use crate::store::tests::{another_descriptor, direct, join_each, name, panel};

/// Panels of several layers, more than the buffers hold.
struct Filled {
    store: Arc<DirectStore>,
    panels: Vec<(PanelName, Ticket)>,
}

const LENGTH: usize = 90_000;
const PER_LAYER: u32 = 100;
const LAYERS: u32 = 3;

fn expected(name: PanelName) -> Vec<u8> {
    panel((name.layer * PER_LAYER + name.panel) as u8, LENGTH)
}

fn filled() -> Option<Filled> {
    let lengths = vec![vec![LENGTH; PER_LAYER as usize]; LAYERS as usize];
    let store = direct(CipherKind::Aegis128L, &lengths)?;
    let panels = (0..LAYERS)
        .flat_map(|layer| (0..PER_LAYER).map(move |panel| name(layer, panel)))
        .map(|name| (name, store.append(name, &expected(name)).unwrap()))
        .collect();
    Some(Filled { store, panels })
}

impl Filled {
    fn reader(&self, threads: usize) -> ReadAhead {
        self.reader_of(DEFAULT_READ_AHEAD, threads)
    }

    /// A reader with buffers of `bytes`.
    fn reader_of(&self, bytes: usize, threads: usize) -> ReadAhead {
        ReadAhead::new(Arc::clone(&self.store), &self.panels, bytes, threads).unwrap()
    }

    fn layer(&self, layer: u32) -> &[(PanelName, Ticket)] {
        let start = (layer * PER_LAYER) as usize;
        &self.panels[start..start + PER_LAYER as usize]
    }

    /// What the host sees from now on.
    fn watch(&self) -> Arc<Mutex<Vec<(u64, usize)>>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let reads = Arc::clone(&seen);
        self.store.observe(Box::new(move |offset, length| {
            reads.lock().unwrap().push((offset, length));
        }));
        seen
    }
}

fn opens(reader: &ReadAhead, (name, ticket): &(PanelName, Ticket)) {
    let mut out = vec![0; LENGTH];
    assert_eq!(reader.open(*name, ticket, &mut out), Ok(()));
    assert!(out == expected(*name), "{name:?} is another panel");
}

/// Asserts that the reads are rounds of the same ones, but for the end; how many reads
/// make a round, and how many rounds there are.
fn rounds(reads: &[(u64, usize)]) -> (usize, usize) {
    let spans = reads[1..]
        .iter()
        .position(|read| *read == reads[0])
        .unwrap()
        + 1;
    for (index, read) in reads.iter().enumerate() {
        assert_eq!(*read, reads[index % spans], "read {index}");
    }
    (spans, reads.len() / spans)
}

#[test]
fn the_sequence_of_reads_is_the_same_in_every_run() {
    let Some(filled) = filled() else { return };
    let reads = filled.watch();
    let reader = filled.reader(1);
    for _ in 0..10 {
        reader.begin_run();
        filled.panels.iter().for_each(|panel| opens(&reader, panel));
    }
    drop(reader);
    let reads = reads.lock().unwrap();
    let (spans, rounds) = rounds(&reads);
    // Eleven panels fit in a span.
    assert_eq!(spans, 300_usize.div_ceil(11));
    assert!(rounds >= 10, "{} reads", reads.len());
}

#[test]
fn as_much_is_read_ahead_as_was_asked_for_and_no_more_than_two_runs() {
    let Some(filled) = filled() else { return };
    let reads = filled.watch();
    let read = || reads.lock().unwrap().len();
    // Spans of a run, see above.
    let spans = 300_usize.div_ceil(11);
    for (bytes, expected) in [
        (LEAST_READ_AHEAD, LEAST_READ_AHEAD / SPAN),
        (DEFAULT_READ_AHEAD, DEFAULT_READ_AHEAD / SPAN),
        (1 << 40, 2 * spans),
    ] {
        reads.lock().unwrap().clear();
        let reader = filled.reader_of(bytes, 1);
        while read() < expected {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(read(), expected, "{bytes} bytes");
        reader.begin_run();
        filled.panels.iter().for_each(|panel| opens(&reader, panel));
    }
}

#[test]
fn whereabouts_are_those_of_what_was_read_and_told_once_it_is_there() {
    let Some(filled) = filled() else { return };
    let reader = filled.reader(1);
    let host = another_descriptor(filled.store.file());
    let (near, far) = (&filled.panels[5], &filled.panels[299]);
    // Neither read nor about to be.
    assert_eq!(reader.whereabouts(far.0, &far.1), None);
    let start = loop {
        if let Some(start) = reader.whereabouts(near.0, &near.1) {
            break start;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let state = reader.shared.lock();
    let seen = state.spans.values().find_map(|arrival| match arrival {
        Arrival::Here { buffer, .. } => {
            let bytes = buffer.as_slice();
            let inside = bytes.as_ptr_range().contains(&start);
            inside.then(|| &bytes[start.addr() - bytes.as_ptr().addr()..][..LENGTH])
        }
        _ => None,
    });
    let mut stored = vec![0; LENGTH];
    host.read_exact_at(&mut stored, near.1.offset as u64)
        .unwrap();
    assert!(seen == Some(&stored[..]), "other bytes");
}

#[test]
fn layers_in_another_order_are_read_in_that_order_from_the_second_run_on() {
    let Some(filled) = filled() else { return };
    let reads = filled.watch();
    let reader = filled.reader(1);
    let run = || {
        reader.begin_run();
        for layer in [2, 0, 1] {
            filled
                .layer(layer)
                .iter()
                .for_each(|panel| opens(&reader, panel));
        }
    };
    run();
    run();
    reads.lock().unwrap().clear();
    for _ in 0..5 {
        run();
    }
    drop(reader);
    let reads = reads.lock().unwrap();
    let (spans, rounds) = rounds(&reads);
    // Layer 2 and the other two: were panels read alone, there would be more.
    assert_eq!(spans, 100_usize.div_ceil(11) + 200_usize.div_ceil(11));
    assert!(rounds >= 4, "{} reads", reads.len());
}

#[test]
fn threads_that_share_a_layer_by_groups_open_what_was_appended() {
    let Some(filled) = filled() else { return };
    let reads = filled.watch();
    // Groups of more panels than the buffers hold, for some of the threads.
    let (threads, group) = (4, 25);
    let reader = filled.reader(threads);
    for _ in 0..5 {
        reader.begin_run();
        for layer in 0..LAYERS {
            std::thread::scope(|scope| {
                let reader = &reader;
                join_each(filled.layer(layer).chunks(group).map(|panels| {
                    scope.spawn(move || panels.iter().for_each(|panel| opens(reader, panel)))
                }));
            });
        }
    }
    drop(reader);
    assert!(rounds(&reads.lock().unwrap()).1 >= 5);
}

#[test]
fn panels_in_any_order_or_twice_are_right() {
    let Some(filled) = filled() else { return };
    let reader = filled.reader(1);
    for step in [7, 299] {
        reader.begin_run();
        for index in 0..filled.panels.len() {
            opens(&reader, &filled.panels[index * step % filled.panels.len()]);
        }
        opens(&reader, &filled.panels[5]);
    }
    // Without the first layer.
    reader.begin_run();
    filled
        .layer(1)
        .iter()
        .for_each(|panel| opens(&reader, panel));
}

#[test]
fn several_sessions_read_one_store() {
    let Some(filled) = filled() else { return };
    std::thread::scope(|scope| {
        join_each((0..3).map(|_| {
            scope.spawn(|| {
                let reader = filled.reader(1);
                for _ in 0..3 {
                    reader.begin_run();
                    filled.panels.iter().for_each(|panel| opens(&reader, panel));
                }
            })
        }));
    });
}

#[test]
fn a_truncated_file_ends_a_run_and_the_error_names_the_panel() {
    let Some(filled) = filled() else { return };
    let reader = filled.reader(1);
    let host = another_descriptor(filled.store.file());
    let length = host.metadata().unwrap().len();
    let (last, ticket) = &filled.panels[250];
    let mut tail = vec![0; length as usize - ticket.offset];
    host.read_exact_at(&mut tail, ticket.offset as u64).unwrap();
    // It cuts the panel itself in two.
    host.set_len(ticket.offset as u64 + 8192).unwrap();
    // A first run, since the last one's end was read ahead before the cut.
    let run = || -> Result<(), OpenError> {
        reader.begin_run();
        let mut out = vec![0; LENGTH];
        filled
            .panels
            .iter()
            .try_for_each(|(name, ticket)| reader.open(*name, ticket, &mut out))
    };
    let kind = io::ErrorKind::UnexpectedEof;
    let expected = OpenError::Unreadable { name: *last, kind };
    assert_eq!(run(), Err(expected));
    assert_eq!(
        expected.to_string(),
        "panel 50 of layer 2 cannot be read: unexpected end of file"
    );
    // And the next run is well again when the file is.
    host.write_all_at(&tail, ticket.offset as u64).unwrap();
    run().ok();
    assert_eq!(run(), Ok(()));
}

#[test]
fn a_reader_goes_while_it_reads_and_while_a_panel_is_waited_for() {
    let Some(filled) = filled() else { return };
    for _ in 0..50 {
        drop(filled.reader(2));
    }
    let reader = filled.reader(2);
    opens(&reader, &filled.panels[0]);
}

#[test]
fn neither_writing_nor_reading_leaves_a_page_in_the_page_cache() {
    let Some(filled) = filled() else { return };
    let reader = filled.reader(1);
    filled.panels.iter().for_each(|panel| opens(&reader, panel));
    let mut out = vec![0; LENGTH];
    let (name, ticket) = &filled.panels[0];
    filled.store.open(*name, ticket, &mut out).unwrap();
    assert_eq!(cached_bytes(&filled.store), 0);

    // The test sees what the host leaves there.
    let mut byte = [0];
    let host = another_descriptor(filled.store.file());
    host.read_exact_at(&mut byte, 0).unwrap();
    assert!(cached_bytes(&filled.store) > 0);
}

/// Bytes of the file that are in memory, by way of a mapping (`mincore`).
fn cached_bytes(store: &DirectStore) -> usize {
    crate::buffer::cached_bytes(store.file(), store.file_bytes())
}
