use super::*;

fn metadata(name: &str, datatype: DataType) -> TensorMetadata {
    TensorMetadata {
        name: name.to_owned(),
        datatype,
        shape: vec![-1, 3],
    }
}

fn outputs(datatype: DataType) -> [TensorMetadata; 3] {
    ["logits", "p", "wrong"].map(|name| metadata(name, datatype))
}

const MISINFORMATION: &str = "[misinformation]\noutput = \"wrong\"\ntau = 0.5\n";

const BUDGETS: &str = "[budgets]\nwindow-seconds = 60\nmodel = { window = 10 }\n";

fn configuration(sections: &str) -> GuardConfiguration {
    let text = format!("format = 1\noutput = \"p\"\n{sections}");
    GuardConfiguration::from_toml(&text).unwrap()
}

fn key() -> ModelKey {
    ModelKey::new(Zeroizing::new([9; 32]))
}

fn guard(sections: &str) -> Guard {
    Guard::new(configuration(sections), &outputs(DataType::Fp32), &key()).unwrap()
}

fn tensor(name: &str, values: &[f32]) -> Tensor {
    let rows = values.len() as u64 / 3;
    Tensor::from_values(name, vec![rows, 3], values).unwrap()
}

fn answered(guard: &Guard, answers: &[f32], wrong: &[f32]) -> Result<Vec<f32>, AnswerError> {
    let computed = [tensor("p", answers), tensor("wrong", wrong)];
    let computed = &computed[..guard.computed().len()];
    let answer = guard.apply(computed, &Marks::default())?;
    assert_eq!((answer.name(), answer.shape()), ("p", computed[0].shape()));
    Ok(answer.to_values().unwrap())
}

const CERTAIN: [f32; 3] = [0.75, 0.25, 0.0];
const UNCERTAIN: [f32; 3] = [0.25, 0.375, 0.375];
const WRONG: [f32; 3] = [1.0, 0.0, 0.0];

#[test]
fn each_row_is_guarded_by_its_own_certainty() {
    let both = |one: [f32; 3], other: [f32; 3]| [one, other].concat();
    let found = answered(
        &guard(MISINFORMATION),
        &both(CERTAIN, UNCERTAIN),
        &both(WRONG, WRONG),
    );
    assert_eq!(found, Ok(both(CERTAIN, WRONG)));
}

#[test]
fn misinformation_is_shaped_and_not_the_other_way_round() {
    let label = format!("{MISINFORMATION}[shaping]\nlabel-only = true\n");
    assert_eq!(
        answered(&guard(&label), &UNCERTAIN, &WRONG),
        Ok(vec![1.0, 0.0, 0.0])
    );
    assert_eq!(
        answered(&guard("[shaping]\ntop = 1\n"), &CERTAIN, &WRONG),
        Ok(vec![0.75, 0.0, 0.0])
    );
}

#[test]
fn clients_see_one_output_and_everything_is_always_computed() {
    let with = guard(MISINFORMATION);
    assert_eq!(with.shown().name, "p");
    assert_eq!(with.computed(), ["p", "wrong"]);
    assert_eq!(guard("[shaping]\ntop = 1\n").computed(), ["p"]);
}

#[test]
fn an_answer_that_is_only_counted_stays_as_it_is() {
    let integers = Guard::new(configuration(BUDGETS), &outputs(DataType::Int64), &key()).unwrap();
    let logits = Tensor::from_values::<i64>("p", vec![2, 3], &[7, -1, 0, 3, 3, 9]).unwrap();
    assert_eq!(
        integers.apply(std::slice::from_ref(&logits), &Marks::default()),
        Ok(logits.clone())
    );
    assert_eq!(
        integers.apply(&[], &Marks::default()),
        Err(AnswerError::Outputs)
    );
}

#[test]
fn each_row_is_a_query() {
    let rows = |declared: &[i64], shape: &[u64]| {
        let outputs = [TensorMetadata {
            shape: declared.to_vec(),
            ..metadata("p", DataType::Fp32)
        }];
        let guard = Guard::new(configuration(BUDGETS), &outputs, &key()).unwrap();
        let values = vec![0.0_f32; shape.iter().product::<u64>() as usize];
        guard.rows(&Tensor::from_values("p", shape.to_vec(), &values).unwrap())
    };
    assert_eq!(rows(&[10], &[10]), 1);
    assert_eq!(rows(&[], &[]), 1);
    assert_eq!(rows(&[-1, 10], &[4, 10]), 4);
    assert_eq!(rows(&[-1, -1, 10], &[4, 7, 10]), 28);
    assert_eq!(rows(&[-1, 10], &[0, 10]), 0);
    // One number, or one label, for each row.
    assert_eq!(rows(&[-1], &[10]), 10);
    assert_eq!(rows(&[4, -1], &[4, 7]), 28);
}

#[test]
fn a_marked_answer_is_changed_before_it_is_shaped_and_can_be_told_again() {
    let of = guard("[watermark]\none-in = 10\n[shaping]\nlabel-only = true\n");
    let rows = 300;
    let image: Vec<f32> = (0..rows).map(|row| row as f32).collect();
    let inputs = [Tensor::from_values("image", vec![rows, 1], &image).unwrap()];
    let marks = of.marks(&inputs);
    let computed = [tensor("p", &CERTAIN.repeat(rows as usize))];
    let answer = of.apply(&computed, &marks).unwrap();
    let told = of.watermarked(&computed, &marks).unwrap();
    let shown: Vec<f32> = answer.to_values().unwrap();
    let mut marked = 0;
    for (row, told) in shown.chunks_exact(3).zip(told) {
        let label = row.iter().position(|value| *value == 1.0).unwrap();
        assert_eq!(label, told.unwrap_or(0));
        marked += usize::from(told.is_some());
    }
    assert!((15..50).contains(&marked), "{marked}");
    // Without a watermark nothing is looked at.
    let without = guard("[shaping]\nlabel-only = true\n");
    assert_eq!(without.marks(&inputs), Marks::default());
    let told = without.watermarked(&computed, &marks).unwrap();
    assert_eq!(told.iter().flatten().count(), 0);
}

#[test]
fn a_watermark_needs_classes_to_choose_from() {
    let of = |classes| {
        let outputs = [TensorMetadata {
            shape: vec![-1, classes],
            ..metadata("p", DataType::Fp32)
        }];
        let refused = Guard::new(
            configuration("[watermark]\none-in = 10\n"),
            &outputs,
            &key(),
        );
        refused.map(|_| ()).map_err(|error| error.to_string())
    };
    let refused = "the guard names the output \"p\", which has 2 classes: a watermark needs 3";
    assert_eq!(of(2), Err(refused.to_owned()));
    assert_eq!((of(3), of(-1)), (Ok(()), Ok(())));
}

#[test]
fn double_precision_stays() {
    let of = Guard::new(
        configuration(MISINFORMATION),
        &outputs(DataType::Fp64),
        &key(),
    )
    .unwrap();
    let values = [0.75 + 1e-12, 0.25 - 1e-12, 0.0];
    let computed = ["p", "wrong"].map(|name| Tensor::from_values(name, vec![3], &values).unwrap());
    let answer = of.apply(&computed, &Marks::default()).unwrap();
    assert_eq!(answer.to_values::<f64>().unwrap(), values);
}

#[test]
fn what_is_no_probability_is_not_answered() {
    let of = guard(MISINFORMATION);
    let refused = |answers: [f32; 3], wrong: [f32; 3]| answered(&of, &answers, &wrong).unwrap_err();
    // Logits, with which every answer would pass for a certain one.
    for values in [
        [8.0, -3.0, 1.0],
        [0.5, 0.5, 0.5],
        [1.5, -0.5, 0.0],
        [0.0; 3],
    ] {
        assert_eq!(refused(values, WRONG), AnswerError::NotProbabilities);
        assert_eq!(refused(CERTAIN, values), AnswerError::NotProbabilities);
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(refused([value, 0.0, 0.0], WRONG), AnswerError::NotFinite);
        assert_eq!(refused(CERTAIN, [0.0, value, 1.0]), AnswerError::NotFinite);
    }
}

#[test]
fn inputs_that_are_not_finite_are_named() {
    let of = guard(MISINFORMATION);
    let input = |value: f32| {
        [
            tensor("fine", &CERTAIN),
            tensor("image", &[0.0, value, 1.0]),
        ]
    };
    of.admit(&input(1e38), &["p".to_owned()]).unwrap();
    let refused = AnswerError::Input {
        input: "image".to_owned(),
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(of.admit(&input(value), &[]), Err(refused.clone()));
    }
    let of_bytes = |datatype, bytes: &[u8]| {
        let data = Zeroizing::new(bytes.to_vec());
        let tensor = Tensor::new("image", datatype, vec![1], data).unwrap();
        of.admit(&[tensor], &[])
    };
    assert_eq!(of_bytes(DataType::Fp16, &[0xff, 0x7b]), Ok(()));
    assert_eq!(
        of_bytes(DataType::Fp16, &[0x00, 0x7c]),
        Err(refused.clone())
    );
    assert_eq!(of_bytes(DataType::Bf16, &[0x7f, 0x7f]), Ok(()));
    assert_eq!(
        of_bytes(DataType::Bf16, &[0xc0, 0xff]),
        Err(refused.clone())
    );
    assert_eq!(
        of_bytes(DataType::Fp64, &f64::NAN.to_le_bytes()),
        Err(refused)
    );
    assert_eq!(of_bytes(DataType::Int64, &[0xff; 8]), Ok(()));
}

#[test]
fn no_output_but_the_one_that_is_shown_is_given() {
    let of = guard(MISINFORMATION);
    for output in ["wrong", "logits", ""] {
        let refused = of.admit(&[], &["p".to_owned(), output.to_owned()]);
        assert_eq!(
            refused.unwrap_err().to_string(),
            format!("the model has no output {output:?}, it has p")
        );
    }
}

#[test]
fn a_model_without_what_the_guard_names_is_refused() {
    let refused = |outputs: &[TensorMetadata]| {
        Guard::new(configuration(MISINFORMATION), outputs, &key())
            .unwrap_err()
            .to_string()
    };
    let [_, answers, wrong] = outputs(DataType::Fp32);
    assert_eq!(
        refused(&[wrong]),
        "the guard names the output \"p\", which the model does not have"
    );
    assert_eq!(
        refused(std::slice::from_ref(&answers)),
        "the guard names the output \"wrong\", which the model does not have"
    );
    assert_eq!(
        refused(&[answers, metadata("wrong", DataType::Fp64)]),
        "the guard names the outputs \"p\" and \"wrong\", which are of two types"
    );
    assert_eq!(
        refused(&outputs(DataType::Int64)),
        "the guard names the output \"p\", which is INT64: FP32 and FP64 are known"
    );
}

#[test]
fn outputs_that_do_not_fit_each_other_give_no_answer() {
    let of = guard(MISINFORMATION);
    let one = tensor("p", &CERTAIN);
    let two = tensor("wrong", &[WRONG, WRONG].concat());
    assert_eq!(
        of.apply(&[one.clone(), two], &Marks::default()),
        Err(AnswerError::Outputs)
    );
    assert_eq!(
        of.apply(std::slice::from_ref(&one), &Marks::default()),
        Err(AnswerError::Outputs)
    );
    assert_eq!(of.apply(&[], &Marks::default()), Err(AnswerError::Outputs));
    let double = Tensor::from_values("wrong", vec![1, 3], &[1.0, 0.0, 0.0]).unwrap();
    assert_eq!(
        of.apply(&[one, double], &Marks::default()),
        Err(AnswerError::Outputs)
    );
    // Nothing asked, nothing answered.
    let none = |name: &str| Tensor::from_values::<f32>(name, vec![0, 3], &[]).unwrap();
    assert_eq!(
        of.apply(&[none("p"), none("wrong")], &Marks::default())
            .unwrap()
            .element_count(),
        0
    );
    let empty = |name: &str| Tensor::from_values::<f32>(name, vec![2, 0], &[]).unwrap();
    assert_eq!(
        of.apply(&[empty("p"), empty("wrong")], &Marks::default())
            .unwrap()
            .element_count(),
        0
    );
}

#[test]
fn each_answer_is_looked_at_as_the_model_gave_it() {
    const TELEMETRY: &str = "[budgets]\nwindow-seconds = 60\nclient = { window = 10 }\n\
         [telemetry]\nqueries = 100\nuncertain = { below = 0.5, share = 0.1 }\n\
         [[issuers]]\nname = \"someone\"\nkey = \"\"\"-----BEGIN PUBLIC KEY-----\n\
         MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
         -----END PUBLIC KEY-----\n\"\"\"\n";
    let of = guard(TELEMETRY);
    let look = |values: &[f32]| of.look(&[tensor("p", values)]);
    let of_class = |class, certainty: f32| Look {
        class,
        certainty: f64::from(certainty),
    };
    assert_eq!(
        look(&[0.1, 0.9, 0.0, 0.4, 0.2, 0.4]),
        Ok(vec![of_class(1, 0.9), of_class(0, 0.4)])
    );
    assert_eq!(look(&[]), Ok(Vec::new()));
    assert_eq!(look(&[f32::NAN, 0.0, 1.0]), Err(AnswerError::NotFinite));
    assert_eq!(look(&[3.0, 0.0, 1.0]), Err(AnswerError::NotProbabilities));
    assert_eq!(of.look(&[]), Err(AnswerError::Outputs));
    let refused = Guard::new(configuration(TELEMETRY), &outputs(DataType::Int64), &key());
    assert!(matches!(refused, Err(MismatchError::Datatype { .. })));
    // Who looks at nothing computes nothing.
    assert_eq!(
        guard(BUDGETS).look(&[tensor("p", &[9.0; 3])]),
        Ok(Vec::new())
    );
}
