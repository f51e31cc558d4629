//! The code that wit-bindgen generates from `wit/policy.wit`: the types, the host's functions, and
//! one export macro per hook.
//!
//! A module declares its exports through custom sections that describe a WIT world. So every hook has
//! its own world here, whose section is emitted by its export macro in the author's crate
//! (`pub_export_macro`): a policy that only names `Filter` declares no other hook. The sections of a
//! module are merged when it is turned into a component.

#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

pub mod common {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-common;
            world common {
                import halley:policy/types@0.1.3;
                import halley:policy/host@0.1.3;
            }
        ",
        additional_derives: [PartialEq],
        generate_unused_types: true,
        generate_all,
    });
}

pub mod lifecycle {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-lifecycle;
            world lifecycle-only {
                export halley:policy/lifecycle@0.1.3;
            }
        ",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_lifecycle",
    });
}

pub mod settings {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-settings;
            world settings-only {
                export halley:policy/settings@0.1.3;
            }
        ",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_settings",
    });
}

pub mod filter {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-filter;
            world filter-only {
                export halley:policy/filter@0.1.3;
            }
        ",
        with: { "halley:policy/types@0.1.3": super::common::halley::policy::types },
        additional_derives: [PartialEq],
        additional_type_attributes: { "halley:policy/filter@0.1.3/amendment": [#[derive(Default)]] },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_filter",
    });
}

pub mod filter_columns {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-filter-columns;
            world filter-columns-only {
                export halley:policy/filter-columns@0.1.3;
            }
        ",
        with: { "halley:policy/types@0.1.3": super::common::halley::policy::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_filter_columns",
    });
}

pub mod retention {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-retention;
            world retention-only {
                export halley:policy/retention@0.1.3;
            }
        ",
        with: { "halley:policy/types@0.1.3": super::common::halley::policy::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_retention",
    });
}

pub mod grouping {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-grouping;
            world grouping-only {
                export halley:policy/grouping@0.1.3;
            }
        ",
        additional_derives: [PartialEq],
        additional_type_attributes: { "halley:policy/grouping@0.1.3/regrouping": [#[derive(Default)]] },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_grouping",
    });
}

pub mod grouping_columns {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-grouping-columns;
            world grouping-columns-only {
                export halley:policy/grouping-columns@0.1.3;
            }
        ",
        additional_derives: [PartialEq],
        additional_type_attributes: {
            "halley:policy/grouping-columns@0.1.3/texts": [#[derive(Default)]],
            "halley:policy/grouping-columns@0.1.3/connections": [#[derive(Default)]],
            "halley:policy/grouping-columns@0.1.3/regrouping": [#[derive(Default)]],
        },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_grouping_columns",
    });
}

pub mod offline {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package halley:sdk-offline;
            world offline-only {
                export halley:policy/offline@0.1.3;
            }
        ",
        with: { "halley:policy/types@0.1.3": super::common::halley::policy::types },
        additional_derives: [PartialEq],
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_offline",
    });
}
