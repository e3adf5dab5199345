//! Measures the kernels on layers of well-known networks, one thread, weights
//! resident, as lines of `layer, milliseconds, GFLOP/s`.
//!
//! `cargo run --release -p occlude-kernels --example layers`

use std::io::Write;
use std::ops::Range;
use std::time::Instant;

use occlude_kernels::{
    Alone, Convolution, ConvolutionShape, Epilogue, Extents, Gemm, Isa, Layout, Panels, Workers,
};

/// Panels one behind the other, as an engine has them.
struct Resident {
    numbers: Vec<f32>,
    places: Vec<Range<usize>>,
}

impl Resident {
    fn new(lengths: impl Iterator<Item = usize>) -> Self {
        let mut end = 0;
        let places: Vec<Range<usize>> = lengths
            .map(|length| {
                let start = end;
                end += length.next_multiple_of(16);
                start..start + length
            })
            .collect();
        Self {
            numbers: vec![0.01; end],
            places,
        }
    }
}

impl Panels for Resident {
    type Error = std::convert::Infallible;

    fn resident(&self, index: usize) -> Option<&[f32]> {
        Some(&self.numbers[self.places[index].clone()])
    }

    fn open(&self, _: usize, _: &mut [f32]) -> Result<(), Self::Error> {
        Ok(())
    }
}

fn main() {
    for isa in Isa::available().into_iter().skip(1) {
        let block = isa.width();
        say(&format!("{isa}"));
        for (name, inputs, outputs, side, kernel, stride, groups) in [
            ("vgg 3-64 224", 3, 64, 224, 3, 1, 1),
            ("vgg 64-64 224", 64, 64, 224, 3, 1, 1),
            ("vgg 128-128 112", 128, 128, 112, 3, 1, 1),
            ("vgg 256-256 56", 256, 256, 56, 3, 1, 1),
            ("vgg 512-512 28", 512, 512, 28, 3, 1, 1),
            ("vgg 512-512 14", 512, 512, 14, 3, 1, 1),
            ("resnet 7x7/2", 3, 64, 224, 7, 2, 1),
            ("resnet 64-256 56", 64, 256, 56, 1, 1, 1),
            ("resnet 64-64 56 3x3", 64, 64, 56, 3, 1, 1),
            ("resnet 256-64 56", 256, 64, 56, 1, 1, 1),
            ("resnet 128-128 28 3x3", 128, 128, 28, 3, 1, 1),
            ("resnet 256-256 28/2", 256, 256, 28, 3, 2, 1),
            ("resnet 256-1024 14", 256, 1024, 14, 1, 1, 1),
            ("resnet 512-2048 7", 512, 2048, 7, 1, 1, 1),
            ("resnet 512-512 7 3x3", 512, 512, 7, 3, 1, 1),
            ("mobilenet 32-32 dw 112", 32, 32, 112, 3, 1, 32),
            ("mobilenet 96-96 dw 112/2", 96, 96, 112, 3, 2, 96),
            ("mobilenet 576-576 dw 14", 576, 576, 14, 3, 1, 576),
            ("mobilenet 16-96 112", 16, 96, 112, 1, 1, 1),
            ("mobilenet 144-24 56", 144, 24, 56, 1, 1, 1),
            ("mobilenet 96-576 14", 96, 576, 14, 1, 1, 1),
            ("mobilenet 576-96 14", 576, 96, 14, 1, 1, 1),
            ("mobilenet 960-160 7", 960, 160, 7, 1, 1, 1),
            ("mobilenet 960-320 7", 960, 320, 7, 1, 1, 1),
            ("mobilenet 320-1280 7", 320, 1280, 7, 1, 1, 1),
        ] {
            let shape = ConvolutionShape {
                out_channels: outputs,
                in_channels_per_group: inputs / groups,
                groups,
                kernel: [kernel; 2],
                strides: [stride; 2],
                dilations: [1; 2],
            };
            let output = (side + 2 * (kernel / 2) - kernel) / stride + 1;
            let convolution = Convolution::new(isa, 1, shape, block);
            let extents = Extents {
                batch: 1,
                input: [side; 2],
                output: [output; 2],
                padding: [kernel / 2; 2],
                input_layout: if inputs < block {
                    Layout::Plain
                } else {
                    Layout::Blocked
                },
                output_layout: Layout::Blocked,
            };
            let lengths = (0..convolution.panels()).map(|panel| convolution.panel_length(panel));
            let weights = Resident::new(lengths);
            let x = vec![0.5; convolution.image_length(inputs, [side; 2], extents.input_layout)];
            let mut y = vec![0.0; convolution.image_length(outputs, [output; 2], Layout::Blocked)];
            let mut scratch = vec![0.0; convolution.scratch(1, &extents)];
            let terms = inputs / groups * kernel * kernel * outputs * output * output;
            measure(name, terms, || {
                let Ok(()) = convolution.run(
                    Workers {
                        panels: &weights,
                        parallel: &Alone,
                        scratch: &mut scratch,
                    },
                    &extents,
                    &x,
                    &Epilogue::default(),
                    &mut y,
                );
            });
        }
        for (m, k, n) in [
            (128, 768, 768),
            (128, 768, 3072),
            (128, 3072, 768),
            (1, 4096, 4096),
        ] {
            let gemm = Gemm::new(isa, 1, k, n, false);
            let lengths = (0..gemm.panels()).map(|panel| gemm.panel_length(panel));
            let weights = Resident::new(lengths);
            let (x, mut y) = (vec![0.5; m * k], vec![0.0; m * n]);
            let mut scratch = vec![0.0; gemm.scratch(1)];
            measure(&format!("gemm {m} x {k} x {n}"), m * k * n, || {
                let Ok(()) = gemm.run(
                    Workers {
                        panels: &weights,
                        parallel: &Alone,
                        scratch: &mut scratch,
                    },
                    &x,
                    &Epilogue::default(),
                    &mut y,
                );
            });
        }
    }
}

fn measure(name: &str, terms: usize, mut run: impl FnMut()) {
    let mut best = f64::INFINITY;
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    let rate = 2.0 * terms as f64 / best / 1e9;
    say(&format!(
        "{name:28} {:8.3} ms {rate:6.1} GFLOP/s",
        best * 1e3
    ));
}

fn say(line: &str) {
    // A reader that went away ends nothing here.
    let _ = writeln!(std::io::stdout(), "{line}");
}
