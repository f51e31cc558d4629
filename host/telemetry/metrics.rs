//! How modules define their metrics: structs of metrics, and enums as label values.

use std::hash::Hash;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::{Family, MetricConstructor};

/// A metric's label, whose values are an enum, or two of them.
pub(crate) trait Label: EncodeLabelSet + Clone + Eq + Hash {
    /// Every value.
    fn values() -> impl Iterator<Item = Self>;
}

impl<A: Label, B: Label> Label for (A, B) {
    fn values() -> impl Iterator<Item = Self> {
        A::values().flat_map(|a| B::values().map(move |b| (a.clone(), b)))
    }
}

/// The family with a series for every value of its label, at zero: the first event is an increase.
pub(crate) fn at_zero<L: Label, M, C: MetricConstructor<M>>(family: Family<L, M, C>) -> Family<L, M, C> {
    L::values().for_each(|value| drop(family.get_or_create(&value)));
    family
}

/// Defines an enum whose variants have names: `as_str`, and all values as `ALL`. With `as`, it is the
/// [`Label`] of this name.
macro_rules! label_enum {
    (
        $(#[$attribute:meta])*
        $visibility:vis enum $name:ident $(as $label:literal)? {
            $($(#[$of_variant:meta])* $variant:ident = $text:literal),+ $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $visibility enum $name {
            $($(#[$of_variant])* $variant),+
        }

        #[allow(dead_code, reason = "not every enum needs all of it")]
        impl $name {
            /// Every value.
            $visibility const ALL: [Self; [$($text),+].len()] = [$(Self::$variant),+];

            /// The name in metrics, logs and the API.
            $visibility const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        $(
            impl $crate::telemetry::Label for $name {
                fn values() -> impl Iterator<Item = Self> {
                    Self::ALL.into_iter()
                }
            }

            impl ::prometheus_client::encoding::EncodeLabelSet for $name {
                fn encode(
                    &self,
                    encoder: &mut ::prometheus_client::encoding::LabelSetEncoder<'_>,
                ) -> ::std::fmt::Result {
                    [($label, self.as_str())].encode(encoder)
                }
            }
        )?
    };
}

/// Defines a struct of metrics with `register`. Each field has its name in `/metrics`, and its documentation
/// is the help there. `in` precedes the value of a metric that has no default. After `..`, fields that are
/// not registered; their values may use the metrics.
macro_rules! metrics {
    (@new) => { Default::default() };
    (@new $value:expr) => { $value };
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $(
                $(#[doc = $help:literal])+
                $of_field:vis $field:ident: $type:ty = $text:literal $(in $value:expr)?;
            )+
            $(.. $(
                $(#[$of_other:meta])*
                $other:ident: $other_type:ty = $other_value:expr;
            )+)?
        }
    ) => {
        $(#[$attribute])*
        $visibility struct $name {
            $($(#[doc = $help])+ $of_field $field: $type,)+
            $($($(#[$of_other])* $other: $other_type,)+)?
        }

        impl $name {
            /// Creates and registers the metrics.
            $visibility fn register(registry: &mut ::prometheus_client::registry::Registry) -> Self {
                $(let $field: $type = $crate::telemetry::metrics!(@new $($value)?);)+
                // Each line of documentation begins with a space, and the registry adds the period.
                $(registry.register(
                    $text,
                    concat!($($help),+).trim_ascii().trim_end_matches('.'),
                    $field.clone(),
                );)+
                $($(let $other = $other_value;)+)?
                Self { $($field,)+ $($($other,)+)? }
            }
        }
    };
}

pub(crate) use {label_enum, metrics};
