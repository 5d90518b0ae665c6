# Bakes on an instance, where no machine of yours has root and loop devices: an ordinary Linux instance runs builder bake on an
# OCI archive, writes the disk onto an empty EBS volume, and is thrown away; the volume becomes a snapshot.
#
#   skopeo copy docker://REPOSITORY:TAG oci-archive:image.tar
#   packer init packer/aws/bake-volume.pkr.hcl
#   packer build -var name=llama -var region=us-west-2 -var oci_archive=image.tar -var reference=REPOSITORY:TAG \
#     packer/aws/bake-volume.pkr.hcl
#   builder bake specs data.img.json --snapshot-id snap-...     the record comes back to where packer ran
#
# Lines between "packer >= 1.8" and "end" use arguments that Packer 1.6 lacks; between "on the instance" and "end", a login.

# packer >= 1.8
packer {
  required_version = ">= 1.8.0"
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.8.0"
    }
  }
}
# end

variable "name" {
  type        = string
  description = "Name of the snapshot."
}

variable "region" {
  type = string
}

variable "oci_archive" {
  type        = string
  description = "The image as an OCI archive; docker save makes none that keeps the registry's digests."
}

variable "reference" {
  type        = string
  description = "repository:tag that pods will name."
}

variable "run" {
  type        = string
  default     = ""
  description = "What the proof gives to the image's entry point, such as --version; builder's own images need none."
}

variable "package" {
  type        = string
  default     = "coldstart-builder"
  description = "What pip installs on the instance."
}

variable "target" {
  type    = string
  default = "bottlerocket"
}

variable "volume_size" {
  type        = number
  default     = 120
  description = "GiB."
}

variable "architecture" {
  type    = string
  default = "x86_64"
}

variable "instance_type" {
  type    = string
  default = "c6i.2xlarge"
}

variable "device" {
  type    = string
  default = "/dev/sdf"
}

variable "builder_size" {
  type        = number
  default     = 128
  description = "GiB of the instance's own disk; holds the archive and the sparse disk."
}

variable "ami_name" {
  type    = string
  default = "debian-12-*"
}

variable "ami_owner" {
  type        = string
  default     = "136693071363"
  description = "Account of the Debian project."
}

source "amazon-ebsvolume" "bake" {
  region        = var.region
  instance_type = var.instance_type
  ssh_username  = "admin"

  source_ami_filter {
    filters = {
      name                = var.ami_name
      architecture        = var.architecture
      virtualization-type = "hvm"
      root-device-type    = "ebs"
    }
    owners      = [var.ami_owner]
    most_recent = true
  }

  ebs_volumes {
    device_name           = "/dev/xvda"
    volume_size           = var.builder_size
    volume_type           = "gp3"
    iops                  = 6000
    throughput            = 600
    delete_on_termination = true
  }

  ebs_volumes {
    device_name           = var.device
    volume_size           = var.volume_size
    volume_type           = "gp3"
    iops                  = 6000
    throughput            = 600
    delete_on_termination = true
    # packer >= 1.8
    snapshot_volume      = true
    snapshot_description = "builder: ${var.reference}"
    snapshot_tags = {
      Name            = var.name
      "builder:image" = var.reference
    }
    # end
    tags = {
      Name = var.name
    }
  }
}

build {
  sources = ["source.amazon-ebsvolume.bake"]

  # on the instance
  provisioner "file" {
    source      = var.oci_archive
    destination = "/var/tmp/image.tar"
  }

  provisioner "shell" {
    script           = "${path.root}/../run-bake.sh"
    environment_vars = ["TARGET=${var.target}", "SIZE=${var.volume_size}GiB", "REFERENCE=${var.reference}", "PACKAGE=${var.package}", "RUN=${var.run}"]
    execute_command  = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }

  provisioner "shell" {
    script           = "${path.root}/../write-disk.sh"
    environment_vars = ["DEVICE=${var.device}", "IMAGE=/var/tmp/baked/data.img"]
    execute_command  = "sudo env {{ .Vars }} sh '{{ .Path }}'"
  }

  provisioner "file" {
    direction   = "download"
    source      = "/var/tmp/baked/data.img.json"
    destination = "data.img.json"
  }
  # end
}
