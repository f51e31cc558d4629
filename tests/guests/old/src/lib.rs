//! A filter for version 0.0.9 of the contract, which this gateway does not support.

wit_bindgen::generate!({ path: "wit", world: "filter-policy" });

struct Old;

impl exports::halley::policy::filter::Guest for Old {
    fn filter(messages: Vec<Vec<u8>>) -> Vec<bool> {
        messages.iter().map(|_| true).collect()
    }
}

export!(Old);
