"""One file a source: each yields encoded images with what is known of them."""
