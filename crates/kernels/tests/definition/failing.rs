//! A panel that cannot be opened ends a run, however threads share it: none waits for it.

use occlude_kernels::{
    Convolution, ConvolutionShape, Epilogue, Extents, Gemm, Isa, Layout, Panels, Workers,
};

use super::Threads;

/// No panel is resident, and one cannot be opened.
pub(crate) struct AllBut(pub(crate) usize);

impl Panels for AllBut {
    type Error = usize;

    fn resident(&self, _: usize) -> Option<&[f32]> {
        None
    }

    fn open(&self, index: usize, out: &mut [f32]) -> Result<(), usize> {
        out.fill(1.0);
        if index == self.0 { Err(index) } else { Ok(()) }
    }
}

/// Runs with every panel missing in turn, and with none.
pub(crate) fn each_panel_counts(panels: usize, run: impl Fn(&AllBut, usize) -> Result<(), usize>) {
    assert!(panels > 0);
    for threads in [1, 3] {
        for panel in 0..panels {
            assert_eq!(run(&AllBut(panel), threads), Err(panel));
        }
        assert_eq!(run(&AllBut(panels), threads), Ok(()));
    }
}

#[test]
fn a_product_ends_with_the_panel_that_cannot_be_opened() {
    // By group of columns, by point behind a window, and both.
    for (rows, columns) in [(1, 200), (20, 1000), (1000, 100), (30, 136)] {
        let isa = Isa::detect();
        let gemm = Gemm::new(isa, 2, 300, columns, false);
        each_panel_counts(gemm.panels(), |panels, threads| {
            let workers = Workers {
                panels,
                parallel: &Threads(threads),
                scratch: &mut vec![0.0; gemm.scratch(threads)],
            };
            let (x, mut y) = (vec![1.0; rows * 300], vec![0.0; rows * columns]);
            gemm.run(workers, &x, &Epilogue::default(), &mut y)
        });
    }
}

#[test]
fn a_convolution_ends_with_the_panel_that_cannot_be_opened() {
    // Depthwise with one panel and with several, and filtered by Winograd's method.
    for (channels, groups) in [(40, 40), (2100, 2100), (64, 1)] {
        let shape = ConvolutionShape {
            out_channels: channels,
            in_channels_per_group: channels / groups,
            groups,
            kernel: [3, 3],
            strides: [1, 1],
            dilations: [1, 1],
        };
        let convolution = Convolution::new(Isa::detect(), 3, shape, 16);
        let extents = Extents {
            batch: 2,
            input: [28, 28],
            output: [28, 28],
            padding: [1, 1],
            input_layout: Layout::Blocked,
            output_layout: Layout::Blocked,
        };
        let image = convolution.image_length(channels, [28, 28], Layout::Blocked);
        each_panel_counts(convolution.panels(), |panels, threads| {
            let workers = Workers {
                panels,
                parallel: &Threads(threads),
                scratch: &mut vec![0.0; convolution.scratch(threads, &extents)],
            };
            let (x, mut y) = (vec![1.0; 2 * image], vec![0.0; 2 * image]);
            convolution.run(workers, &extents, &x, &Epilogue::default(), &mut y)
        });
    }
}
