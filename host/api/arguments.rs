//! Arguments of requests that both forms of the API take.

use crate::api::error::ApiError;
use crate::inbox::{Cursor, DeviceId, Owner};

/// A cursor; `None` if the text is empty.
pub(super) fn cursor<'a>(
    field: &'static str,
    text: &str,
    owner: impl Into<Owner<'a>>,
) -> Result<Option<Cursor>, ApiError> {
    (!text.is_empty()).then(|| required_cursor(field, text, owner)).transpose()
}

/// A cursor that has to be there.
pub(super) fn required_cursor<'a>(
    field: &'static str,
    text: &str,
    owner: impl Into<Owner<'a>>,
) -> Result<Cursor, ApiError> {
    Cursor::decode(text, owner).map_err(|why| ApiError::invalid(field, why))
}

/// A device's name.
pub(super) fn device(text: &str) -> Result<DeviceId, ApiError> {
    DeviceId::new(text).map_err(|why| ApiError::invalid("device", why))
}

/// A device's name; `None` if the text is empty.
pub(super) fn optional_device(text: &str) -> Result<Option<DeviceId>, ApiError> {
    (!text.is_empty()).then(|| device(text)).transpose()
}
