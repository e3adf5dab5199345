//! Measures the kernels on layers of well-known networks, one thread, weights
//! resident, as lines of `layer, milliseconds, GFLOP/s`.
//!
//! `cargo run --release -p occlude-kernels --example layers`

use std::io::Write;
use std::time::Instant;

use occlude_kernels::{
    Alone, Convolution, ConvolutionShape, Epilogue, Extents, Gemm, Isa, Layout, Panels, Workers,
};

struct Resident(Vec<Vec<f32>>);

impl Panels for Resident {
    type Error = std::convert::Infallible;

    fn resident(&self, index: usize) -> Option<&[f32]> {
        Some(&self.0[index])
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
            ("mobilenet 576-96 14", 576, 96, 14, 1, 1, 1),
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
            let convolution = Convolution::new(isa, shape, block);
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
            let weights = (0..convolution.panels())
                .map(|panel| vec![0.01; convolution.panel_length(panel)])
                .collect();
            let weights = Resident(weights);
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
            let gemm = Gemm::new(isa, k, n, false);
            let weights = (0..gemm.panels()).map(|panel| vec![0.01; gemm.panel_length(panel)]);
            let weights = Resident(weights.collect());
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
