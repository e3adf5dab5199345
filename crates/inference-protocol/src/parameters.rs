//! Parameters: the protocol's key/value pairs, bounded in number.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::MAXIMUM_PARAMETERS;

/// A parameter's value: a string, a number or a boolean.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Parameter {
    /// `true` or `false`.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number, finite.
    Number(f64),
    /// A string.
    Text(String),
}

/// Parameters by name, at most [`MAXIMUM_PARAMETERS`] of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Parameters(BTreeMap<String, Parameter>);

impl Parameters {
    /// The parameter of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.get(name)
    }

    /// Sets a parameter, replacing any of that name.
    pub fn set(&mut self, name: &str, value: Parameter) {
        self.0.insert(name.to_owned(), value);
    }

    /// Takes a parameter out.
    pub fn remove(&mut self, name: &str) -> Option<Parameter> {
        self.0.remove(name)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The parameters in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Parameter)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ParameterVisitor;

        impl Visitor<'_> for ParameterVisitor {
            type Value = Parameter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number or a boolean")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter::Boolean(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Parameter, E> {
                Ok(Parameter::Integer(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Parameter, E> {
                i64::try_from(value).map(Parameter::Integer).map_err(|_| {
                    E::custom("a parameter's whole number does not fit in 64 bits with sign")
                })
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Parameter, E> {
                Ok(Parameter::Number(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Parameter, E> {
                Ok(Parameter::Text(value.to_owned()))
            }
        }

        deserializer.deserialize_any(ParameterVisitor)
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ParametersVisitor;

        impl<'de> Visitor<'de> for ParametersVisitor {
            type Value = Parameters;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut parameters = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Parameter>()? {
                    if parameters.len() == MAXIMUM_PARAMETERS {
                        return Err(de::Error::custom(format_args!(
                            "more than {MAXIMUM_PARAMETERS} parameters"
                        )));
                    }
                    if parameters.insert(name, value).is_some() {
                        return Err(de::Error::custom("a parameter is given twice"));
                    }
                }
                Ok(Parameters(parameters))
            }
        }

        deserializer.deserialize_map(ParametersVisitor)
    }
}
