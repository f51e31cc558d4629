//! How modules define their metrics: structs of metrics, and enums as label values.

/// Defines an enum whose variants have names, such as the values of a metric's label: `as_str`, all values
/// as `ALL`, and the label's encoding.
macro_rules! label_enum {
    (
        $(#[$attribute:meta])*
        $visibility:vis enum $name:ident {
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

        impl ::prometheus_client::encoding::EncodeLabelValue for $name {
            fn encode(
                &self,
                encoder: &mut ::prometheus_client::encoding::LabelValueEncoder<'_>,
            ) -> ::std::fmt::Result {
                ::prometheus_client::encoding::EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    };
}

/// Defines a struct of metrics with `register`. Each field has its name in `/metrics`, and its documentation
/// is the help there. `in` precedes the value of a metric that has no default. After `..`, fields that are
/// not registered.
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
                let metrics = Self {
                    $($field: $crate::telemetry::metrics!(@new $($value)?),)+
                    $($($other: $other_value,)+)?
                };
                // Each line of documentation begins with a space, and the registry adds the period.
                $(registry.register(
                    $text,
                    concat!($($help),+).trim_ascii().trim_end_matches('.'),
                    metrics.$field.clone(),
                );)+
                metrics
            }
        }
    };
}

pub(crate) use {label_enum, metrics};
